"""Adapters of diffusion transformers with the names of the models' original code: read only.

    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight               kohya's scripts, with `.alpha`
    diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight            ComfyUI, ai-toolkit
    double_blocks.0.processor.qkv_lora1.down.weight                       XLabs
    lora_te1_…, text_encoders.clip_l.transformer.…                        the text encoders with them

The layers get diffusers' names (`diffusion_families`), fused projections become an update each. Without an alpha, lora_alpha is
the rank. What full weights change (`diff`, `diff_b`) is refused unless it is nothing: zeros.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.updates import LoRAUpdate
from ..config import LoRAConfig
from ..errors import FormatError
from . import diffusers, foreign, kohya
from .diffusion_families import DOTTED, FAMILIES, FLAT, Family
from .diffusion_names import dotted
from .family_places import Place, place, refused_family
from .opened import Opened
from .validation import GIVE_A_KEY_MAP

EXPECTED = "an adapter of a diffusion transformer has tensors named lora_unet_… or diffusion_model.…"

_PREFIXES = sorted({prefix for family in FAMILIES for prefix in family.prefixes}, key=len, reverse=True)
_TEXT = {  # ComfyUI's names of text encoders, and kohya's
    "text_encoders.clip_l.transformer.": "lora_te1",
    "text_encoders.clip_g.transformer.": "lora_te2",
    "text_encoders.t5xxl.transformer.": "lora_te3",
}
_OF_TEXT = ("lora_te", *_TEXT)
_SURE_PREFIXES = (DOTTED, FLAT, "conditional_transformer.")  # what only diffusion models' files have
_UNET = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.2")
_T5 = "text_encoder_2"  # of these models in diffusers, whatever number other programs give it
_PART = re.compile(
    r"(?P<layer>.+?)\.(?:(?:lora_(?P<ab>[AB])|lora[._](?P<way>down|up)|(?P<xlabs>down|up))(?:\.default)?\.weight"
    r"|(?P<other>lora_mid\.weight|dora_scale|alpha|diff|diff_b|(?:hada|lokr|oft)_\w+|on_input|[ab][12]\.weight|[wb]_norm))"
)
_WAYS = {"A": "lora_down.weight", "B": "lora_up.weight", "down": "lora_down.weight", "up": "lora_up.weight"}
_DIFFERENCES = ("diff", "diff_b")


class Key(NamedTuple):
    """A tensor's name, taken apart: what is before the layer's name, that name, and the part as kohya calls it."""

    prefix: str
    layer: str
    part: str


def detect(opened: Opened) -> bool:
    """Whether it is a file of tensors of such a model, by their names."""
    if _is_diffusers(opened):
        return False
    keys = filter(None, map(_taken_apart, opened.known_names()))
    kinds = {(key.prefix, re.sub(r"\d+", "0", key.layer)): (key.prefix, key.layer) for key in keys}  # one for all blocks
    ours = [kind for kind in kinds.values() if kind[0] in _SURE_PREFIXES]
    others = [kind for kind in kinds.values() if kind[0] not in _SURE_PREFIXES and not kind[0].startswith(_OF_TEXT)]
    return any(_families(kind) or _of_unet(*kind) for kind in ours) or any(_is_all_of(family, others) for family in FAMILIES)


def _is_all_of(family: Family, kinds: Sequence[tuple[str, str]]) -> bool:
    """Whether all the layers are of `family`, one of them surely."""
    sure = bool(family.sure) and any(re.fullmatch(family.sure, layer) for _, layer in kinds)
    return sure and all(family.name in _families(kind) for kind in kinds)


def read(opened: Opened, config: LoRAConfig | None = None) -> Adapter:
    """The adapter in the file; `FormatError` when it is damaged, of another method, or of layers whose names are not known."""
    path, stored = opened.path, opened.all_tensors()
    layers = _by_layer(str(path), stored)
    updates = {key: kohya.update_of(f"{path}: layer {key[0] + key[1]!r}", parts) for key, parts in layers.items()}
    family, places = _chosen(str(path), updates)
    found: dict[str, LoRAUpdate] = {}
    for key, update in updates.items():
        pieces = _split(f"{path}: layer {key[0] + key[1]!r}", update, places[key])
        if twice := found.keys() & pieces.keys():
            raise FormatError(f"{path}: {sorted(twice)[0]!r} has several updates, under names of different programs.")
        found |= pieces
    return Adapter(LoRAConfig(), found, source=f"{family} adapter {path.name}")


def _is_diffusers(opened: Opened) -> bool:
    """Whether diffusers says that it wrote the file: by names of one model that some families have, too."""
    return opened.path.name in (diffusers.FILE, diffusers.PICKLED) or (
        opened.is_safetensors and diffusers.METADATA in opened.metadata
    )


# --- names ----------------------------------------------------------------------------------------------------------


def _taken_apart(name: str) -> Key | None:
    match = _PART.fullmatch(name)
    if match is None:
        return None
    layer, ways = match["layer"], (match["ab"], match["way"], match["xlabs"])
    part = match["other"] or _WAYS[next(filter(None, ways))]
    if text := re.match(r"(lora_te[123]?)_", layer):
        return Key(text[0], layer[len(text[0]) :], part)
    for start in _TEXT:
        if layer.startswith(start):
            return Key(start, layer.removeprefix(start), part)
    prefix = next(prefix for prefix in (*_PREFIXES, "") if layer.startswith(prefix))
    return Key(prefix, layer.removeprefix(prefix), part)


def _families(key: tuple[str, str], shape: tuple[int, int] | None = None) -> dict[str, Place]:
    """Where the layer is by each family that knows it."""
    prefix, layer = key
    known = ((family, place(family, layer, prefix == FLAT, shape)) for family in FAMILIES if prefix in family.prefixes)
    return {family.name: found for family, found in known if found}


def _of_text(prefix: str, layer: str) -> Place | None:
    """Where a layer of a text encoder is, if `prefix` is of one."""
    kohyas = _TEXT.get(prefix, prefix.removesuffix("_"))
    if not kohyas.startswith("lora_te") or (name := dotted(layer.replace(".", "_"))) is None:
        return None
    component = _T5 if kohyas in ("lora_te2", "lora_te3") else "text_encoder"
    return Place((f"{component}.{name}",), (False,))


def _of_unet(prefix: str, layer: str) -> Place | None:
    """Where a layer of Stable Diffusion's UNet is, which its original code calls so."""
    name = dotted(layer.replace(".", "_")) if prefix == DOTTED and layer.startswith(_UNET) else None
    return Place((f"unet.{name}",), (False,)) if name else None


def _by_layer(where: str, stored: Mapping[str, Tensor]) -> dict[tuple[str, str], dict[str, Tensor]]:
    """The parts of each layer's update, by what is before its name, and its name."""
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        key = _taken_apart(name)
        if key is None:
            what = foreign.by_names([name])
            kind = f"of {what}" if what else "of no kind that can be represented"
            raise FormatError(f"{where}: tensor {name!r} is {kind}.")
        if key.part in _DIFFERENCES and not tensor.any():
            continue
        kohya.check_part(where, name, key.part)
        parts = found.setdefault((key.prefix, key.layer), {})
        if key.part in parts:
            raise FormatError(f"{where}: {name!r} and another tensor belong to the same layer.")
        parts[key.part] = tensor
    return found


# --- places ---------------------------------------------------------------------------------------------------------


def _chosen(where: str, updates: Mapping[tuple[str, str], LoRAUpdate]) -> tuple[str, dict[tuple[str, str], Place]]:
    """The family that knows all layers, and where it has them; `FormatError` when none does, or two differ."""
    alone = {key: found for key in updates if (found := _of_text(*key) or _of_unet(*key))}
    by_layer = {key: _families(key, _shape(update)) for key, update in updates.items() if key not in alone}
    if alone and not by_layer:
        return "Stable Diffusion", alone
    names = [family.name for family in FAMILIES if all(family.name in known for known in by_layer.values())]
    if not names:
        raise _unknown(where, by_layer)
    choices = [{key: known[name] for key, known in by_layer.items()} for name in names]
    if odd := next((name for name, places in zip(names, choices, strict=True) if places != choices[0]), None):
        raise FormatError(
            f"{where}: these layers may be of {names[0]} or of {odd}, where they have different names", *GIVE_A_KEY_MAP
        )
    return names[0], choices[0] | alone


def _shape(update: LoRAUpdate) -> tuple[int, int]:
    return len(update.B), update.A.shape[1]


def _unknown(where: str, by_layer: Mapping[tuple[str, str], Mapping[str, Place]]) -> FormatError:
    """The error for a file with a layer that the family of most of its layers does not know."""
    known = [name for places in by_layer.values() for name in places]
    best = max(known, key=known.count, default="")
    prefix, layer = next((key for key, places in by_layer.items() if best not in places), ("", ""))
    family = refused_family(layer)
    what = (
        f"it is of {family}, which is not read" if family else f"no layer of {best or 'a known family'} has this name and shape"
    )
    return FormatError(f"{where}: {prefix + layer!r}: {what}", *kohya.WAYS_OUT)


# --- rows -----------------------------------------------------------------------------------------------------------


def _split(where: str, update: LoRAUpdate, at: Place) -> dict[str, LoRAUpdate]:
    """The updates of the layers in diffusers whose rows, one below the other, are those of `update`."""
    rows, width = len(update.B), update.A.shape[1]
    shared = at.as_input.count(False)
    rest = rows - width * at.as_input.count(True)
    if rest < 0 or (shared and (rest % shared or not rest)) or (at.swapped and rows % 2):
        raise FormatError(f"{where} has {rows} outputs, which do not divide among {', '.join(at.layers)}.")
    if len(at.layers) == 1 and not at.swapped:
        return {at.layers[0]: update}
    if at.swapped:
        return {at.layers[0]: _of_rows(update, [slice(rows // 2, rows), slice(0, rows // 2)])}
    sizes = [width if as_input else rest // shared for as_input in at.as_input]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    slices = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    ranks = _own_ranks(update, slices)
    return {layer: _of_rows(update, [piece], rank) for layer, piece, rank in zip(at.layers, slices, ranks, strict=True)}


def _own_ranks(update: LoRAUpdate, slices: list[slice]) -> list[slice]:
    """Which components each slice uses: an equal share, in order, where all others are zero for it; else all of them."""
    r, rest = divmod(update.r, len(slices))
    own = [slice(i * r, (i + 1) * r) for i in range(len(slices))]
    outside = (torch.cat([update.B[rows, : k.start], update.B[rows, k.stop :]], 1) for rows, k in zip(slices, own, strict=True))
    return own if not rest and not any(bool(B.any()) for B in outside) else [slice(0, update.r)] * len(slices)


def _of_rows(update: LoRAUpdate, rows: Iterable[slice], rank: slice = slice(None)) -> LoRAUpdate:
    """The update of some of the rows of a weight. rank: the components that have a part in it."""
    pieces = list(rows)
    A, B = update.A[rank], torch.cat([update.B[piece] for piece in pieces])[:, rank]
    magnitude = None if update.magnitude is None else torch.cat([update.magnitude[piece] for piece in pieces])
    return dataclasses.replace(update, A=A, B=B.contiguous(), magnitude=magnitude, lora_alpha=_alpha(update, len(A)))


def _alpha(update: LoRAUpdate, r: int) -> float:
    value = update.lora_alpha * r / update.r
    return int(value) if float(value).is_integer() else value
