"""Dropout on the input of an update: a module, or a function without state in a layer that drops nothing.

So a layer without dropout has no submodule, as in loralib 0.1, and can still be pickled, which a lambda of 0.1 could not.
"""

from collections.abc import Callable

from torch import Tensor, nn

Dropout = Callable[[Tensor], Tensor]


def no_dropout(x: Tensor) -> Tensor:
    """`lora_dropout` of a layer without dropout."""
    return x


def probability(dropout: Dropout) -> float | None:
    """The probability with which `dropout` drops now, for an operation that drops by itself; None for a function or a module
    of another kind, which a user put there, or one that drops everything."""
    if dropout is no_dropout or isinstance(dropout, nn.Identity):
        return 0.0
    if type(dropout) is nn.Dropout and not dropout.inplace and dropout.p < 1:
        return dropout.p if dropout.training else 0.0
    return None
