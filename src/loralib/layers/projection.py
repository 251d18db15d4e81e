"""The projections of an `nn.MultiheadAttention` as layers that can be adapted.

The attention keeps their weights itself, in `in_proj_weight` or in `q_proj_weight` and its like, and never calls a layer. A
`Projection` is a view of that weight; adapted, it holds the factors, and its owner merges and unmerges.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.updates import ProjectionUpdate
from ..architectures import PROJECTIONS
from .linear import LinearLoRA, declare_affine
from .owned_weight import OwnedWeight, OwnedWeightLoRA


def slot_of(owner: nn.MultiheadAttention, name: str) -> str:
    """The Parameter of `owner` that the weight of its projection `name` is in."""
    return "in_proj_weight" if owner._qkv_same_embed_dim else f"{name}_weight"


def rows_of(owner: nn.MultiheadAttention, name: str, matrix: Tensor) -> Tensor:
    """What belongs to the projection `name` in a Parameter of `owner` (or in its bias)."""
    i = PROJECTIONS.index(name) * owner.embed_dim
    return matrix[i : i + owner.embed_dim] if len(matrix) == 3 * owner.embed_dim else matrix


class Projection(OwnedWeight):
    """The projection of query, key or value of an `nn.MultiheadAttention`, as a layer that can be adapted.

    Its weight is a part of its owner's.
    """

    owner: nn.MultiheadAttention

    @property
    def slot(self) -> str:
        """The Parameter of the owner that the weight is in."""
        return slot_of(self.owner, self.name)

    def part(self, matrix: Tensor) -> Tensor:
        """What belongs to this projection in a Parameter of the owner."""
        return rows_of(self.owner, self.name, matrix)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) projected, (..., e)."""
        b = self.owner.in_proj_bias
        return F.linear(x, self.weight, None if b is None else self.part(b))


declare_affine(Projection)


class OutProjectionLoRA(LinearLoRA):
    """LoRA for `out_proj`, a linear layer of a class that torch made for this purpose."""

    update_classes = (ProjectionUpdate,)


class ProjectionLoRA(OwnedWeightLoRA, LinearLoRA):
    """LoRA for a `Projection`."""

    update_classes = (ProjectionUpdate,)

    @classmethod
    def features(cls, layer: nn.Module) -> tuple[int, int]:
        """How many features go in and come out."""
        W = layer.weight
        assert isinstance(W, Tensor)
        return W.shape[1], W.shape[0]
