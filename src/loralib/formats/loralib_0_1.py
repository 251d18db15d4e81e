"""Checkpoints of loralib 0.1: a state dict that `torch.save` wrote, whole or only `lora_state_dict` of it.

    <layer>.lora_A, <layer>.lora_B     (r, in) and (out, r); of MergedLinear (n·r, in) and (n·out/N, r) for n of N slices
    anything else                      extra tensors, such as a head or biases

Such a file says neither lora_alpha nor which slices were enabled, nor whether a layer is an embedding: `read` takes the first
two from a configuration, and the last from the layer's name. Convolutions and whole models need the model: see `load_legacy`.
"""

import io
from pathlib import Path

import torch
from torch import Tensor

from .. import patterns
from ..adapters.adapter import Adapter
from ..adapters.convolution_updates import LegacyConvolutionUpdate, LegacyTransposedUpdate
from ..adapters.embedding_update import EmbeddingUpdate
from ..adapters.fused_update import FusedUpdate
from ..adapters.updates import LoRAUpdate
from ..architectures import is_embedding
from ..config import LoRAConfig
from ..errors import FormatError
from ..storage.atomic import write_atomically
from ..storage.safetensors import SUFFIX
from .opened import Opened
from .validation import FACTORS, by_layer, made, named, parts_of, refuse

EXPECTED = "a checkpoint of loralib 0.1 is a file of torch.save with tensors named <layer>.lora_A and <layer>.lora_B"

_NAMES = {factor: factor for factor in FACTORS}
_ENDS = tuple(f".{factor}" for factor in FACTORS)


def detect(opened: Opened) -> bool:
    """Whether it is a pickled state dict with 0.1's names."""
    if not opened.path.is_file() or opened.path.suffix == SUFFIX:
        return False
    try:
        return any(name.endswith(".lora_A") for name in opened.state_dict())
    except FormatError:
        return False


def read(opened: Opened, config: LoRAConfig | None = None, *, unknown_alpha: bool = False) -> Adapter:
    """The adapter in the file. config: its `lora_alpha` (and `alpha_pattern`), and its `enable_lora` for fused
    projections; the rank is found in the file. unknown_alpha: take lora_alpha = r, so that ΔW is known up to a factor.

    Raises `FormatError` when the file is no such state dict, holds a whole model, or needs what `config` does not say.
    """
    path, state = opened.path, opened.state_dict()
    factors, others = by_layer(str(path), state, FACTORS)
    if not factors:
        raise FormatError(f"{path} holds no LoRA factors (tensors named lora_A and lora_B).")
    if config is None and not unknown_alpha:
        raise FormatError(
            f"{path} is a checkpoint of loralib 0.1, which does not say lora_alpha",
            "give that of its training: load(path, config=LoRAConfig(lora_alpha=16))",
            option="give that of its training: --lora-alpha N",
        )
    if whole := [name for name in factors if f"{name}.weight" in others or f"{name}.conv.weight" in others]:
        raise FormatError(
            f"{path} holds the weights of adapted layers, too ({whole[0]!r}), a whole model that may have been saved "
            "merged: load it into the model with load_legacy(model, path), and extract the adapter from there."
        )
    layers = {name: _update(f"{path}: layer {name!r}", name, parts, config) for name, parts in factors.items()}
    tensors = {name: state[name] for name in state if name in others}
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in tensors))
    return Adapter(LoRAConfig(modules_to_save=modules), layers, tensors, source=f"loralib 0.1 checkpoint {path.name}")


def write(adapter: Adapter, path: Path) -> None:
    """Write the file `path`. lora_alpha is not in it: 0.1 takes it from the layers' constructors."""
    refuse("token rows", adapter.rows, "A checkpoint of loralib 0.1")
    refuse("metadata", adapter.metadata, "A checkpoint of loralib 0.1")
    state: dict[str, Tensor] = {}
    if len(scalings := {update.lora_alpha for update in adapter.layers.values()}) > 1:
        raise FormatError(
            f"A checkpoint of loralib 0.1 does not say lora_alpha, and the layers have different ones ({sorted(scalings)}). "
            "Nothing was written."
        )
    for name, update in adapter.layers.items():
        known = type(update) in (EmbeddingUpdate, LegacyConvolutionUpdate, LegacyTransposedUpdate, FusedUpdate)
        known = known or (type(update) is LoRAUpdate and update.A.dim() == 2)
        uneven = isinstance(update, FusedUpdate) and len(set(update.widths)) > 1
        if not known or uneven or update.use_rslora or update.is_dora:
            what = "of slices of unequal width" if uneven else "a DoRA update" if known else f"a {type(update).__name__}"
            what = "scaled by lora_alpha / √r" if update.use_rslora else what
            raise FormatError(f"The update of {name!r} is {what}, which loralib 0.1 does not know. Nothing was written.")
        state |= named(name, update.tensors(), _NAMES)
    refuse(
        "tensors named as factors, and weights of adapted layers",
        [name for name in adapter.tensors if name.endswith(_ENDS) or name.removesuffix(".weight") in adapter.layers],
        "A checkpoint of loralib 0.1",
    )
    state |= adapter.tensors
    buffer = io.BytesIO()
    torch.save(
        {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}, buffer
    )
    write_atomically(path, buffer.getvalue())


def _update(where: str, name: str, parts: dict[str, Tensor], config: LoRAConfig | None) -> LoRAUpdate:
    parts = parts_of(where, parts, _NAMES)
    A, B = parts.values()
    if A.dim() != 2 or B.dim() != 2 or not 0 < B.shape[1] <= len(A) or len(A) % B.shape[1]:
        raise FormatError(f"{where}: lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} are not factors of one update.")
    r, n = B.shape[1], len(A) // B.shape[1]
    lora_alpha = patterns.lookup(config.alpha_pattern, name, config.lora_alpha) if config else r
    mask = patterns.lookup(config.masks, name, None) if config else None
    if mask is None and n > 1:
        raise FormatError(
            f"{where} fuses several projections, {n} of which have factors",
            "say which: LoRAConfig(lora_alpha=…, enable_lora=[True, False, True])",
            option="say which: --enable-lora true,false,true",
        )
    if mask is None:
        return made(where, EmbeddingUpdate if is_embedding(name) else LoRAUpdate, parts, lora_alpha)
    if sum(mask) != n or len(B) % n:
        raise FormatError(
            f"{where}: enable_lora={list(mask)} does not fit lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}."
        )
    widths = (len(B) // n,) * len(mask)
    return made(where, FusedUpdate, parts, lora_alpha, enable_lora=tuple(mask), widths=widths)
