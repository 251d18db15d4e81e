"""Weights that a module keeps itself and multiplies with, without calling a layer: `nn.MultiheadAttention`'s projections,
experts.

An `OwnedWeight` is a view of such a weight as a layer that can be adapted. Adapted, it becomes a child of its owner and holds
the factors; the weight stays where the owner keeps it, and the owner, which is an `Owner` then, merges and unmerges it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from .adopted import Adopted
from .base import AdaptedLayer
from .merging import storage_problem
from .temporary_weight import TemporaryWeights


class OwnedWeight(nn.Module):
    """A weight of another module, its owner, as a layer that can be adapted. It holds no Parameter until then.

    name: what the layer is called in its owner.
    """

    owner: nn.Module

    def __init__(self, owner: nn.Module, name: str):
        super().__init__()
        self.__dict__["owner"] = owner  # past nn.Module.__setattr__: the owner is not a child
        self.name = name
        self.training = owner.training

    @property
    def key(self) -> str:
        """The name under which the owner holds the adapted layer among its children."""
        return self.name

    @property
    def slot(self) -> str:
        """The Parameter of the owner that the weight is in."""
        return self.name

    @property
    def weight(self) -> Tensor:
        """The weight in use."""
        return self.part(getattr(self.owner, self.slot))

    def part(self, matrix: Tensor) -> Tensor:
        """What belongs to this weight in a Parameter of the owner."""
        return matrix


class OwnedWeightLoRA(AdaptedLayer):
    """LoRA for an `OwnedWeight`. Its owner merges and unmerges, since the weight is there."""

    owner: Any  # an Owner
    name: str
    key: str
    slot: str
    part: Callable[[Tensor], Tensor]

    def original(self, name: str) -> Any:
        """The part of the owner's own Parameter that is this weight."""
        return self.part(self.owner.original(self.slot))

    def weight_on_meta(self) -> bool:
        """Whether the weight has a shape and no values."""
        return bool(self.owner.original(self.slot).is_meta)

    def merge_problem(self) -> str | None:
        """Why the weight cannot be merged, or None; while the owner moves its tensors, it does not ask."""
        return None if "_held" in vars(self.owner) else storage_problem(self.owner) or super().merge_problem()

    def home_of_weight(self) -> nn.Parameter | None:
        """The owner's Parameter that the weight is in."""
        home: nn.Parameter | None = self.owner._parameters.get(self.slot)
        return home

    def merge_again(self) -> None:
        """Put the effective weight of the original in its place."""
        vars(self)["merged"] = True
        self.owner.merge_again()

    def restore(self, name: str) -> None:
        """Put the original back."""
        vars(self)["merged"] = False
        self.owner.merge_again()

    def weight_is_merged(self) -> bool:
        """Whether the weight in place is the one that merging put there."""
        return self.slot not in self.owner._replaced or self.owner.holds_replacement(self.slot)

    def keep_replacement(self, name: str) -> None:
        """Make the weight in its place the owner's own."""
        self.owner.keep_replacement(self.slot)


class Owner(Adopted, TemporaryWeights):
    """A module with adapted weights of its own: it merges them, and gives them back."""

    def adapted(self) -> list[OwnedWeightLoRA]:
        """The weights that have updates.

        Returns:
            Their layers.
        """
        return [child for child in self._modules.values() if isinstance(child, OwnedWeightLoRA)]

    def merge_again(self) -> None:
        """Put the weights that the merged layers make of the originals in their places; the others are restored."""
        if "_held" in vars(self):
            return
        merged = [layer for layer in self.adapted() if layer.merged]
        for slot in {layer.slot for layer in merged} | set(self._replaced):
            chosen = [layer for layer in merged if layer.slot == slot]
            if not chosen:
                self.restore(slot)
                continue
            with torch.inference_mode(False), torch.no_grad():
                W = self.original(slot).detach().clone()
                for layer in chosen:
                    part = layer.part(W)
                    part.copy_(layer.effective_weight(part))
                    layer.note_factors()
                self.replace_temporarily(slot, W)

    @contextmanager
    def originals(self) -> Iterator[None]:
        """All originals are in their places inside the block, whatever the layers do meanwhile."""
        for slot in list(self._replaced):
            self.restore(slot)
        self.__dict__["_held"] = True
        try:
            yield
        finally:
            del self.__dict__["_held"]
            self.merge_again()

    def make_final(self, name: str) -> None:
        """Let the weight that is assigned be the module's own, without updates: it was computed from the merged one."""
        for layer in self.adapted():
            if layer.merged and layer.slot == name:
                layer.make_final(name)

    def unmerged_twin(self) -> Self:
        """A module that shares all with this one and of which no weight is merged.

        Returns:
            The twin.
        """
        twin = object.__new__(type(self))
        vars(twin).update({name: value for name, value in vars(self).items() if name not in ("_replaced", "forward")})
        vars(twin).update(_parameters=self._parameters | self.waiting(), _modules=dict(self._modules))
        for layer in self.adapted():
            own = layer.unmerged_twin()
            vars(own)["owner"] = twin
            twin._modules[layer.key] = own
        return twin


def leave(module: nn.Module) -> None:
    """Make `module` what it was, once none of its weights and layers is adapted."""
    if isinstance(module, Owner) and not any(isinstance(child, AdaptedLayer) for child in module.children()):
        module.give_back()
