"""What two updates of layers have in common: whether they are equal, can be added, or can take each other's place."""

import dataclasses
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from ..tensors import same_bits

_OF_ALL = ("A", "B", "lora_alpha", "use_rslora", "magnitude")


class Comparable:
    """The part of `LoRAUpdate` that compares it with others."""

    A: Tensor
    B: Tensor
    lora_alpha: float
    use_rslora: bool
    kind: ClassVar[str]  # what files and digests call it
    of_base: ClassVar[frozenset[str]] = frozenset()  # fields that describe the base layer, not the update

    @property
    def r(self) -> int:
        """The rank."""
        raise NotImplementedError

    def structure(self) -> tuple[object, ...]:
        """What the products of two updates must share to be put side by side.

        Returns:
            All but rank and scaling.
        """
        own = (value for name, value in self.own_fields() if name not in self.of_base)
        return (type(self), self.A.shape[1:], self.B.shape[0], self.B.shape[2:], *own)

    def own_fields(self) -> list[tuple[str, object]]:
        """The fields that the kind has in addition to those of all.

        Returns:
            Names and values.
        """
        kind: Any = type(self)
        return [(name, getattr(self, name)) for name in own_field_names(kind)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Comparable) or type(other) is not type(self):
            return NotImplemented
        kind: Any = type(self)
        return all(same_bits(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(kind))

    def __hash__(self) -> int:
        return hash((self.structure(), self.r, float(self.lora_alpha), self.use_rslora))

    def form(self) -> list[tuple[str, object]]:
        """What two updates must share for the one to be loaded in the other's place.

        Returns:
            Names and values of kind, rank, shapes and structure.
        """
        shapes = [
            ("kind", self.kind),
            ("rank", self.r),
            ("lora_A", tuple(self.A.shape)),
            ("lora_B", tuple(self.B.shape)),
        ]
        return [*shapes, *((name, value) for name, value in self.own_fields() if name not in self.of_base)]


@cache
def own_field_names(kind: type) -> tuple[str, ...]:
    """The names of the fields that a class of updates has in addition to those of all."""
    return tuple(field.name for field in dataclasses.fields(kind) if field.name not in _OF_ALL)
