"""The update of an embedding, whose weight is stored as (V, k)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import ops
from .layout import Layout
from .updates import LoRAUpdate


@dataclass(frozen=True, eq=False)
class EmbeddingUpdate(LoRAUpdate):
    """The update of an embedding: ΔW = s·(B·A)ᵀ, stored like the weight, (num_embeddings, embedding_dim).

    Args:
        A: (r, num_embeddings).
        B: (embedding_dim, r).
        lora_alpha: The numerator of the scaling.
        use_rslora: Scale by lora_alpha / √r.
        magnitude: Of a DoRA update, (embedding_dim,).
        max_norm: That of the base layer, which renormalises the rows of W before the update is added; 0 for none.
        norm_type: That of the base layer.

    Example:
        >>> lora.EmbeddingUpdate(torch.ones(2, 10), torch.ones(4, 2), lora_alpha=2).delta().shape
        torch.Size([10, 4])
    """

    kind: ClassVar[str] = "embedding"
    max_norm: float = 0.0
    norm_type: float = 2.0

    usual_layout: ClassVar[Layout] = Layout(transposed=True)
    of_base: ClassVar[frozenset[str]] = frozenset({"max_norm", "norm_type"})

    def as_used(self, W: Tensor) -> Tensor:
        """Rows of the weight (V, k) with norms of at most `max_norm`, by blocks as they are merged."""
        if not self.max_norm or not len(W):
            return W
        blocks = ops.row_blocks(len(W), W.shape[1])
        return torch.cat([torch.renorm(W[first:last], self.norm_type, 0, self.max_norm) for first, last in blocks])
