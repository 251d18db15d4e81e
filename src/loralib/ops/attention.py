"""Attention as `nn.MultiheadAttention` computes it, on projected queries, keys and values.

    softmax(q·kᵀ/√h + mask)·v,     q (n, H, l, h), k and v (n, H, s, h)

n batch, l target and s source length, H heads of width h.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LayerError


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, need_weights: bool) -> tuple[Tensor, Tensor | None]:
    """The output (n, H, l, h) and, where they are asked for, the weights (n, H, l, s), dropped with probability `p`.

    >>> q, k, v = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4)
    >>> y, weights = attend(q, k, v, None, 0.0, need_weights=True)
    >>> y.shape, weights.sum(-1)
    (torch.Size([1, 1, 2, 4]), tensor([[[1., 1.]]]))
    """
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask, p), None
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (n, H, l, s)
    weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), p)
    return weights @ v, weights


def check_shapes(q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None, H: int) -> None:
    """`LayerError` for what would be broadcast here and is refused by torch: q (n, l, e), k and v (n, s, ·)."""
    (n, target), source = q.shape[:2], k.shape[1]
    if q.dim() != 3 or k.shape[:2] != v.shape[:2] or k.shape[0] != n:
        raise LayerError(f"query {tuple(q.shape)}, key {tuple(k.shape)} and value {tuple(v.shape)} do not go together.")
    of_keys: list[tuple[int, ...]] = [(n, source)]
    of_pairs: list[tuple[int, ...]] = [(target, source), (n * H, target, source)]
    for name, mask, shapes in (("key_padding_mask", key_padding_mask, of_keys), ("attn_mask", attn_mask, of_pairs)):
        if mask is None:
            continue
        if tuple(mask.shape) not in shapes:
            raise LayerError(f"{name} has shape {tuple(mask.shape)}; expected {' or '.join(map(str, shapes))}.")
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise LayerError(f"{name} has dtype {mask.dtype}; expected torch.bool or a floating-point one.")


def additive_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, n: int, extra: int, dtype: torch.dtype
) -> Tensor | None:
    """Both masks as one that is added to the scores (n, H, l, s + extra); the `extra` positions are never masked.

    attn_mask (l, s) or (n·H, l, s), key_padding_mask (n, s); True, or -∞, is what is not attended to.
    """
    masks = []
    if attn_mask is not None:
        masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, (n, -1)))
    if key_padding_mask is not None:
        masks.append(key_padding_mask[:, None, None, :])
    total = None
    for mask in masks:
        zeros = torch.zeros((), dtype=dtype, device=mask.device)
        added = zeros.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask.to(dtype)
        added = F.pad(added, (0, extra))
        total = added if total is None else total + added
    return total
