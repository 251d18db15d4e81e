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
    if not kwargs:
        raise TypeError("forward() is missing its input")
    x: Tensor = next(kwargs[name] for name in ("input", "x", *kwargs) if name in kwargs)
    return x


def without_input(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The named arguments without the input, which torch calls `input` and 0.1 x."""
    return {name: value for name, value in kwargs.items() if name not in ("input", "x")}


def takes_x(forward: Forward) -> Forward:
    """Declare 0.1's signature, (x), for a `forward(self, x=None, **named)`, which takes its input by torch's name as well.

    torch.fx reads the parameters of the code, where it could not iterate over `*args`, and makes a proxy of each, also of
    `named`; so a forward looks into it only where x is missing or it is a dictionary.
    """
    vars(forward)["__signature__"] = _SIGNATURE
    return forward


def by_torchs_name(x: Tensor | None, named: dict[str, Tensor]) -> Tensor:
    """The input that was passed as `input`; `TypeError` for anything else."""
    if x is None and named.keys() == {"input"}:
        return named["input"]
    wrong = next((name for name in named if x is not None or name != "input"), None)
    raise TypeError(
        "forward() is missing its input, x" if wrong is None else f"forward() got an unexpected keyword argument {wrong!r}"
    )
