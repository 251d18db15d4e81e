"""The parts of an adapter, by name: of which kinds they are, and other names for them."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

from ..arguments import check_mapping
from ..errors import TargetError
from .token_rows import TokenRows
from .updates import LoRAUpdate

T = TypeVar("T")


def check_parts(
    layers: Mapping[str, LoRAUpdate], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], rows: Mapping[str, TokenRows]
) -> None:
    """`ArgumentError` for a part of another kind."""
    check_mapping(layers, "layers", LoRAUpdate, "a LoRAUpdate, or another update")
    check_mapping(tensors, "tensors", Tensor, "a torch.Tensor")
    check_mapping(metadata, "metadata", object, "a text (a str)")
    check_mapping(rows, "rows", TokenRows, "TokenRows")


def renamed(new: Callable[[str], str], values: Mapping[str, T]) -> dict[str, T]:
    """The values by new names; `TargetError` where two would have one name, or one none."""
    found: dict[str, T] = {}
    for name, value in values.items():
        if (other := new(name)) in found or not other:
            problem = "more than one thing would be called so" if other else "a name is needed"
            raise TargetError(f"rename: {name!r} cannot become {other!r}: {problem}.")
        found[other] = value
    return found
