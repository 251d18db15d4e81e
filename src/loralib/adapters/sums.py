"""What sums of adapters share: the terms of each layer, and the values on which all of them must agree."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ..errors import AlgebraError
from .algebra import Weighted
from .updates import LoRAUpdate

T = TypeVar("T")


def terms_by_layer(
    adapters: Sequence[Mapping[str, LoRAUpdate]], weights: Sequence[float]
) -> Iterator[tuple[str, list[Weighted]]]:
    """Every layer that any of `adapters`, given by their layers, adapts, with the updates that it has and their weights."""
    for name in dict.fromkeys(name for layers in adapters for name in layers):
        yield name, [(layers[name], weight) for layers, weight in zip(adapters, weights, strict=True) if name in layers]


def agreed(held: Sequence[Mapping[str, T]], same: Callable[[T, T], bool]) -> dict[str, T]:
    """All values that are trained in full; `AlgebraError`, by name, where two mappings hold different ones."""
    found: dict[str, T] = {}
    for values in held:
        for name, value in values.items():
            first = found.setdefault(name, value)
            if first is not value and not same(first, value):
                raise AlgebraError(
                    f"{name!r} was trained in full in several adapters and differs; say with combine(..., tensors=...) what "
                    "is to become of such tensors."
                )
    return found


def shared(metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The entries that all have.

    >>> shared([{"a": "x", "b": "y"}, {"a": "x", "b": "z"}])
    {'a': 'x'}
    """
    return {key: value for key, value in metadata[0].items() if all(other.get(key) == value for other in metadata)}


@contextmanager
def in_layer(name: str) -> Iterator[None]:
    """Let an `AlgebraError` inside the block begin with `name`, that of the layer."""
    try:
        yield
    except AlgebraError as error:
        raise AlgebraError(f"{name}: {error}") from None
