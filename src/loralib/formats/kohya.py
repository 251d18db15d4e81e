"""Stable Diffusion's adapters as kohya's scripts write them and the programs around them exchange: one safetensors file.

    lora_unet_<layer>.lora_down.weight    (r, in), or (r, in, *kernel) of a convolution (LoCon)
    lora_unet_<layer>.lora_up.weight      (out, r), or (out, r, 1…)
    lora_unet_<layer>.alpha               one positive number; without it lora_alpha is the rank
    lora_unet_<layer>.lora_mid.weight     (r, r, *kernel) between two factors of kernel 1 (Tucker): multiplied out on reading
    lora_unet_<layer>.dora_scale          (out, 1…): DoRA's magnitudes

`lora_te_` is the text encoder; where there are two, they are `lora_te1_` and `lora_te2_`; OneTrainer's `lora_transformer_` is
read only. The layer's name has underscores for dots: see `diffusion_names`. Other methods (LoHa, LoKr …) share this format
and are refused by name. So is an alpha of zero, which kohya's scripts take for the rank and other programs for no effect.

Files do not say whether a scaling was lora_alpha / √r; an alpha of the same effect, up to float64's rounding, is written then.
Programs take ranks and alphas from the tensors, so that no metadata is needed. The UNet's layers are written with diffusers'
names, which most programs know; in Stable Diffusion XL kohya's own scripts look for the original code's.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.updates import LoRAUpdate
from ..config import LoRAConfig, alpha_for
from ..errors import FormatError
from ..storage.atomic import write_atomically
from ..storage.safetensors import tensor_bytes
from .diffusers import factored, representable
from .diffusion_names import dotted, underscored
from .family_places import is_original, refused_family
from .opened import Opened
from .validation import FLOATS, GIVE_A_KEY_MAP, MAGNITUDE, NOT_WRITTEN, alpha_of, alpha_tensor, named, parts_of

EXPECTED = "an adapter of kohya's scripts is a .safetensors file with tensors named lora_unet_… or lora_te_…"

_COMPONENTS = {
    "lora_transformer": "transformer",
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
}
_KEY = re.compile(r"(lora_unet|lora_transformer|lora_te[123]?)_([^.]+)\.(.+)")
_DOWN, _UP, _MID, _SCALE, _ALPHA = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "dora_scale", "alpha"
_NAMES = {"lora_A": _DOWN, "lora_B": _UP, MAGNITUDE: _SCALE}
WAYS_OUT = (  # remedies for names that are not known, and the options for them
    "have diffusers convert it once (load_lora_weights of the model's pipeline, save_lora_adapter of its transformer), or "
    + GIVE_A_KEY_MAP[0],
    "have diffusers convert it once (load_lora_weights of the model's pipeline, save_lora_adapter of its transformer), or "
    + GIVE_A_KEY_MAP[1],
)
_LARGEST_KERNEL = 8 * 8
_CLIPS = ("text_encoder", "text_encoder_2")
# fmt: off
_OTHERS = {  # what tensors are whose names begin so
    "hada": "of the method LoHa", "lokr": "of the method LoKr", "oft": "of the method OFT", "on_input": "of the method IA³",
    "a1.": "of the method GLoRA", "a2.": "of the method GLoRA", "b1.": "of the method GLoRA", "b2.": "of the method GLoRA",
    "diff": "a change of full weights", "w_norm": "a change of full weights", "b_norm": "a change of full weights",
}
# fmt: on


def detect(opened: Opened) -> bool:
    """Whether it is such a file, by the names of its tensors."""
    return any(map(_KEY.fullmatch, opened.known_names()))


def read(opened: Opened, config: LoRAConfig | None = None) -> Adapter:
    """The adapter in the file; `FormatError` when it is damaged, or of another method, or names a layer whose dotted name
    cannot be told."""
    path, stored = opened.path, opened.all_tensors()
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in stored.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise FormatError(f"{path}: tensor {key!r} is of no kind that can be represented.")
        check_part(path, key, match[3])
        if (name := dotted(match[2])) is None:
            unknown.append((match[1], match[2]))
        else:
            layer = parts.setdefault(f"{_COMPONENTS[match[1]]}.{name}", {})
            if match[3] in layer:
                raise FormatError(f"{path}: {key!r} and another tensor belong to the same layer.")
            layer[match[3]] = tensor
    if unknown:
        names = ", ".join(sorted({"_".join(name) for name in unknown})[:3])
        families = sorted({family for _, flat in unknown if (family := refused_family(flat))})
        of = f" (of {families[0]}, which is not read)" if families else ""
        raise FormatError(f"{path}: what {names} are called in the model cannot be told from underscores{of}", *WAYS_OUT)
    layers = {name: update_of(f"{path}: layer {name!r}", found) for name, found in parts.items()}
    if not layers:
        raise FormatError(f"{path} holds no factors; it is no LoRA adapter.")
    return Adapter(LoRAConfig(), layers, source=f"kohya file {path.name}")


def write(adapter: Adapter, path: Path) -> None:
    """Write the file `path`."""
    layers = representable(adapter, "kohya's format")
    two = any(name.startswith("text_encoder_2.") for name in layers)
    unused = ("lora_transformer", "lora_te" if two else "lora_te1")
    prefixes = {component: prefix for prefix, component in _COMPONENTS.items() if prefix not in unused}
    tensors: dict[str, Tensor] = {}
    for name, update in layers.items():
        component, _, inner = name.partition(".")
        flat = underscored(inner)
        if component in _CLIPS and inner.startswith("encoder.layers."):
            raise FormatError(
                f"{name!r}: programs that read kohya's format know this layer as text_model.{inner}",
                f"name it so: adapter.rename({{'{component}.encoder': '{component}.text_model.encoder'}})",
                option=f"name it so: --rename {component}.encoder={component}.text_model.encoder",
                outcome=NOT_WRITTEN,
            )
        if component not in prefixes or dotted(flat) != inner or is_original(flat):
            raise FormatError(
                f"{name!r} cannot be told back from underscores, which kohya's format has for dots.", outcome=NOT_WRITTEN
            )
        key = f"{prefixes[component]}_{flat}"
        lora_alpha = alpha_for(update.scaling, update.r) if update.use_rslora else update.lora_alpha
        parts = update.tensors()
        if update.is_dora:
            parts[MAGNITUDE] = parts[MAGNITUDE].reshape(-1, *[1] * (update.A.dim() - 1))
        tensors |= named(key, parts, _NAMES) | {f"{key}.{_ALPHA}": alpha_tensor(lora_alpha)}
    write_atomically(path, tensor_bytes(tensors, {"format": "pt"}))


def check_part(where: Path | str, key: str, part: str) -> None:
    """`FormatError` when `part` of the name `key` is of another method than LoRA."""
    if part not in (_DOWN, _UP, _MID, _SCALE, _ALPHA):
        other = next((what for start, what in _OTHERS.items() if part.startswith(start)), None)
        kind = f"{other}, which is no LoRA" if other else "of no kind that can be represented"
        raise FormatError(f"{where}: tensor {key!r} is {kind}.")


def update_of(where: str, stored: Mapping[str, Tensor]) -> LoRAUpdate:
    """The update that the tensors `stored` of a layer are, by kohya's names."""
    parts = parts_of(where, stored, _NAMES)
    if _MID in stored:
        parts["lora_A"] = _multiplied(where, stored[_MID], parts["lora_A"])
    A, scale = parts["lora_A"], parts.get(MAGNITUDE)
    if scale is not None:
        if not scale.dim() or scale.shape[1:].numel() != 1:
            raise FormatError(
                f"{where} has dora_scale {tuple(scale.shape)}, not one number an output; scales an input cannot be represented."
            )
        parts[MAGNITUDE] = scale.flatten()
    return factored(where, parts, alpha_of(where, stored.get(_ALPHA), max(len(A) if A.dim() else 1, 1)))


def _multiplied(where: str, mid: Tensor, down: Tensor) -> Tensor:
    """The first factor (r, in, *kernel) that a middle (r, q, *kernel) after a first one (q, in, 1…) amounts to, in at least
    float32. r = q in all files, and kernels are small: so the product is not much larger than the file."""
    fits = mid.dim() > 2 and down.dim() == mid.dim() and down.shape[2:].numel() == 1 and mid.shape[1] == len(down)
    small = fits and len(mid) * mid.shape[2:].numel() <= _LARGEST_KERNEL * len(down)
    if not small or mid.dtype not in FLOATS or down.dtype != mid.dtype:
        raise FormatError(f"{where}: lora_mid {tuple(mid.shape)} does not fit lora_down {tuple(down.shape)}.")
    product = torch.einsum("rq...,qd->rd...", mid.double(), down.flatten(1).double())
    return product.to(torch.promote_types(mid.dtype, torch.float32))
