"""Whether a weight that is loaded was saved merged: loralib 0.1 saved W + ΔW in evaluation mode, with nothing that says so."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops, tensors
from .merging import Mergeable

_ROWS = 8  # of a sample, which in nearly every case is enough to see that a weight was not


def delta_of(layer: Mergeable, factors: Mapping[str, Tensor], W: Tensor) -> Tensor:
    """The ΔW that `factors` would give `layer`, in at least float32 and laid out as its weight `W`."""
    zeros = torch.zeros_like(W, dtype=torch.promote_types(W.dtype, torch.float32))
    own = {name: nn.Parameter(factor.to(W.device), requires_grad=False) for name, factor in factors.items()}
    twin = object.__new__(type(layer))
    vars(twin).update(vars(layer), _parameters=layer._parameters | own)
    return twin.effective_weight(zeros).detach()


def relation(saved: Tensor, own: Tensor, delta: Tensor) -> str:
    """What a saved weight is to the model's own one: that weight ("unmerged"), that weight with ΔW added ("merged"), both,
    because ΔW is lost in rounding ("either"), or another weight altogether ("other").

    The nearer one counts, if it is nearer by far than ΔW is large: 0.1's own merging left traces of rounding.
    """
    eps = max(torch.finfo(t.dtype).eps for t in (saved, own))
    saved, own = saved.to(delta), own.detach().to(delta)
    to_own, to_merged = float((saved - own).norm()), float((saved - own - delta).norm())
    size, noise = float(delta.norm()), 4 * eps * float(own.norm() + delta.norm())
    if size <= noise:
        return "either" if to_own <= 2 * noise else "other"
    if min(to_own, to_merged) > size / 4:
        return "other"
    return "unmerged" if to_own < to_merged else "merged"


def was_saved_merged(layer: Mergeable, state: Mapping[str, Any], prefix: str) -> bool:
    """Whether the weight that `state` has for `layer` is the layer's own plus the ΔW of the factors that it has."""
    saved, factors = state.get(prefix + "weight"), {name: state.get(prefix + name) for name in ("lora_A", "lora_B")}
    held = {name: factor for name, factor in factors.items() if factor is not None and _fits(layer, name, factor)}
    if len(held) < len(factors) or "weight" not in layer._parameters or not _fits(layer, "weight", saved):
        return False
    assert saved is not None
    with torch.inference_mode(False), torch.no_grad():
        own = layer.original("weight")
        sample = _first_rows(layer, held, own)
        if sample is not None and relation(saved[: len(sample)], own[: len(sample)], sample) in ("unmerged", "other"):
            return False
        return relation(saved, own, delta_of(layer, held, own)) == "merged"


def _fits(layer: Mergeable, name: str, saved: Any) -> bool:
    own = layer.original(name)
    return tensors.kind(own) == tensors.kind(saved) == "plain" and saved.shape == own.shape


def _first_rows(layer: Mergeable, factors: Mapping[str, Tensor], W: Tensor) -> Tensor | None:
    """The first rows of the ΔW that `factors` would give `layer`; None where a part of it cannot be had by itself."""
    update = layer.update_of(factors["lora_A"].to(W.device), factors["lora_B"].to(W.device))
    strips = update.strips(layer.layout(layer))
    if strips is None or W.dim() != 2:
        return None
    rows = torch.zeros_like(W[:_ROWS], dtype=torch.promote_types(W.dtype, torch.float32))
    ops.add_to_block(rows, 0, strips, update.scaling, rows)
    return rows
