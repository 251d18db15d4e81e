"""LoRA on `nn.MultiheadAttention`, which keeps the weights of its projections itself and never calls a layer.

Each projection of query, key and value is a layer here (see `projection`): `q_proj`, `k_proj` and `v_proj` hold the factors,
while the weight stays where the module keeps it. `out_proj` is a linear layer that is there anyway. As long as one of the four
has an update that acts, the module computes

    q = query·Wqᵀ + bq + s·Bq·Aq·query,   k and v likewise,   softmax(q·kᵀ/√h + mask)·v,   then out_proj

in the order that torch documents, with `lora_dropout` on each input; otherwise torch's own forward runs, its fast path
included. n batch, l target and s source length, e embedding, H heads of width h.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LayerError
from ..ops.attention import additive_mask, attend, check_shapes
from .base import AdaptedLayer
from .class_factory import lora_class
from .owned_weight import Owner
from .projection import rows_of, slot_of

if TYPE_CHECKING:
    _Attention = nn.MultiheadAttention
else:
    _Attention = object


class MultiheadAttentionLoRA(Owner, _Attention):
    """LoRA for an `nn.MultiheadAttention` that has projections with updates. `inject` makes it, and `eject` undoes it.

    Example:
        >>> model = nn.Sequential(nn.MultiheadAttention(8, 2))
        >>> lora.inject(model, lora.LoRAConfig(r=2, target_modules=["q_proj", "out_proj"]))
        ['0.q_proj', '0.out_proj']
        >>> isinstance(model[0], lora.layers.MultiheadAttentionLoRA)
        True
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`, with the updates.

        Args:
            query: (n, l, e) or (l, e); (l, n, e) without `batch_first`.
            key: As `query`, of length s.
            value: As `key`.
            key_padding_mask: (n, s), keys to leave out.
            need_weights: Return the attention's weights too.
            attn_mask: (l, s) or (n·heads, l, s).
            average_attn_weights: Return their mean over the heads.
            is_causal: A hint about `attn_mask`.

        Returns:
            The output, shaped as `query`, and the weights, (n, l, s) or (n, heads, l, s), or None.

        Raises:
            LayerError: When `is_causal` comes without the mask, or the shapes do not fit.
        """
        masks: dict[str, Any] = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
        if any(projection.is_stale() for projection in self.adapted()):
            asked: dict[str, Any] = {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
            return self.unmerged_twin().forward(query, key, value, **masks, **asked)
        needs_gradient = torch.is_grad_enabled() and query.requires_grad  # torch attends to nested tensors without only
        if not self._acts() and not (query.is_nested and needs_gradient):
            asked = {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
            return super().forward(query, key, value, **masks, **asked)
        if query.is_nested:  # nn.TransformerEncoder packs padded batches so, for its fast path
            return self._forward_nested(query, key, value, key_padding_mask, attn_mask, need_weights), None
        if is_causal and attn_mask is None:
            raise LayerError("is_causal=True is a hint about attn_mask, which is missing; give the causal mask as well.")
        batched, first = query.dim() == 3, self.batch_first
        if batched and not first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        check_shapes(query, key, value, key_padding_mask, attn_mask, self.num_heads)
        q, k, v = self._project("q_proj", query), self._project("k_proj", key), self._project("v_proj", value)
        y, weights = self._attend(q, k, v, key_padding_mask, attn_mask, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if first else y.transpose(0, 1), weights

    def _acts(self) -> bool:
        adapted: list[nn.Module] = [*self.adapted(), self.out_proj]
        return any([isinstance(layer, AdaptedLayer) and (layer.acts or layer.is_stale()) for layer in adapted])

    def _project(self, name: str, x: Tensor) -> Tensor:
        if name in self._modules:
            projected: Tensor = self.get_submodule(name)(x)
            return projected
        b = self.in_proj_bias
        return F.linear(
            x, rows_of(self, name, getattr(self, slot_of(self, name))), None if b is None else rows_of(self, name, b)
        )

    def _forward_nested(
        self, x: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, mask: Tensor | None, need_weights: bool
    ) -> Tensor:
        """Self-attention on a nested tensor (n, l of each, e), which becomes a padded one meanwhile."""
        if x is not key or x is not value or padding is not None or mask is not None or need_weights:
            raise LayerError("A nested tensor is attended to by itself only, without masks and without weights.")
        lengths = [len(row) for row in x.unbind()]
        padded = x.to_padded_tensor(0.0)
        outside = torch.arange(padded.shape[1], device=x.device) >= torch.tensor(lengths, device=x.device).unsqueeze(-1)
        y, _ = MultiheadAttentionLoRA.forward(self, padded, padded, padded, key_padding_mask=outside, need_weights=False)
        return torch.nested.as_nested_tensor([row[:length] for row, length in zip(y, lengths, strict=True)])

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The output (n, l, e) and perhaps the weights (n, H, l, s), for q (n, l, e), k and v (n, s, e)."""
        n, s = k.shape[:2]
        if self.bias_k is not None and self.bias_v is not None:
            k, v = torch.cat([k, self.bias_k.expand(n, 1, -1)], dim=1), torch.cat([v, self.bias_v.expand(n, 1, -1)], dim=1)
        q, k, v = self._heads(q), self._heads(k), self._heads(v)  # (n, H, ·, h)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        mask = additive_mask(attn_mask, key_padding_mask, n, k.shape[2] - s, q.dtype)
        heads, weights = attend(q, k, v, mask, self.dropout if self.training else 0.0, need_weights)
        return self.out_proj(heads.transpose(1, 2).flatten(2)), weights

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


def attention_problem(module: nn.MultiheadAttention) -> str | None:
    """Why the projections of `module` cannot be adapted, or None."""
    if isinstance(module, MultiheadAttentionLoRA):
        return None
    if type(module).forward is not nn.MultiheadAttention.forward or "forward" in vars(module):
        return f"the {type(module).__name__} it belongs to has a forward of its own, which reads its weight without calling it"
    return None


def enter(module: nn.MultiheadAttention) -> None:
    """Make `module` one that computes with the updates of its projections."""
    if not isinstance(module, MultiheadAttentionLoRA):
        module.__class__ = lora_class(MultiheadAttentionLoRA, type(module))
        assert isinstance(module, MultiheadAttentionLoRA)
        module.stay_called()
