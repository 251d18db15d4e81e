"""The projections of an `nn.MultiheadAttention` as layers that can be adapted.

The attention keeps their weights itself, in `in_proj_weight` or in `q_proj_weight` and its like, and never calls a layer. A
`Projection` is a view of that weight; adapted, it holds the factors, and its owner merges and unmerges.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.updates import ProjectionUpdate
from ..architectures import PROJECTIONS
from .linear import LinearLoRA, declare_affine


def slot_of(owner: nn.MultiheadAttention, name: str) -> str:
    """The Parameter of `owner` that the weight of its projection `name` is in."""
    return "in_proj_weight" if owner._qkv_same_embed_dim else f"{name}_weight"


def rows_of(owner: nn.MultiheadAttention, name: str, matrix: Tensor) -> Tensor:
    """What belongs to the projection `name` in a Parameter of `owner` (or in its bias)."""
    i = PROJECTIONS.index(name) * owner.embed_dim
    return matrix[i : i + owner.embed_dim] if len(matrix) == 3 * owner.embed_dim else matrix


class Projection(nn.Module):
    """The projection of query, key or value of an `nn.MultiheadAttention`, as a layer that can be adapted.

    Its weight is a part of its owner's; it holds no Parameter until it is adapted.
    """

    owner: nn.MultiheadAttention

    def __init__(self, owner: nn.MultiheadAttention, name: str):
        super().__init__()
        self.__dict__["owner"] = owner  # past nn.Module.__setattr__: the owner is not a child
        self.name = name
        self.training = owner.training

    @property
    def slot(self) -> str:
        """The Parameter of the owner that the weight is in."""
        return slot_of(self.owner, self.name)

    @property
    def weight(self) -> Tensor:
        """The weight (e, in) in use."""
        return self.rows(getattr(self.owner, self.slot))

    def rows(self, matrix: Tensor) -> Tensor:
        """What belongs to this projection in a Parameter of the owner."""
        return rows_of(self.owner, self.name, matrix)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) projected, (..., e)."""
        b = self.owner.in_proj_bias
        return F.linear(x, self.weight, None if b is None else self.rows(b))


declare_affine(Projection)


class OutProjectionLoRA(LinearLoRA):
    """LoRA for `out_proj`, a linear layer of a class that torch made for this purpose."""

    update_classes = (ProjectionUpdate,)


class ProjectionLoRA(LinearLoRA):
    """LoRA for a `Projection`. Its owner merges and unmerges, since the weight is there."""

    update_classes = (ProjectionUpdate,)

    owner: Any  # a MultiheadAttentionLoRA, which is in `attention`
    name: str
    slot: str
    rows: Callable[[Tensor], Tensor]

    @classmethod
    def features(cls, layer: nn.Module) -> tuple[int, int]:
        """How many features go in and come out."""
        W = layer.weight
        assert isinstance(W, Tensor)
        return W.shape[1], W.shape[0]

    def original(self, name: str) -> Any:
        """The part of the owner's own Parameter that is this projection's weight."""
        return self.rows(self.owner.original(self.slot))

    def weight_on_meta(self) -> bool:
        """Whether the weight has a shape and no values."""
        return bool(self.owner.original(self.slot).is_meta)

    def merge_problem(self) -> str | None:
        """Why the weight cannot be merged, or None; while the owner moves its tensors, it does not ask."""
        return None if "_held" in vars(self.owner) else super().merge_problem()

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
