"""The name of a layer's input: torch's `input`, loralib 0.1's `x`, or a custom layer's own. Callers may use any of them."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Forward = TypeVar("Forward", bound=Callable[..., Any])

_SIGNATURE = inspect.Signature(
    [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("x", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Tensor),
    ]
)


def named_input(kwargs: dict[str, Any]) -> Tensor:
    """A layer's input where it was passed by name: torch's, 0.1's, or whatever the base layer calls its first argument;
    `TypeError` where nothing was passed."""
    for name in ("input", "x", *kwargs):
        if name in kwargs:
            x: Tensor = kwargs[name]
            return x
    raise TypeError("forward() is missing its input, x")


def without_input(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The named arguments without the input, which torch calls `input` and 0.1 x."""
    return {name: value for name, value in kwargs.items() if name not in ("input", "x")}


def takes_x(forward: Forward) -> Forward:
    """Declare 0.1's signature, (x), for a `forward(self, x=None, **named)`, which takes its input by torch's name as well.

    torch.fx reads the parameters of the code, and cannot iterate over `*args`; it leaves `named` alone where x is there.
    """
    vars(forward)["__signature__"] = _SIGNATURE
    return forward
