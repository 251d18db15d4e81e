"""What the formats share: updates made of what strangers say, and updates in a form that formats know."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.convolution_updates import ConvolutionUpdate, LegacyConvolutionUpdate, LegacyTransposedUpdate
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.fused_update import FusedUpdate
from ..adapters.updates import LoRAUpdate, ProjectionUpdate
from ..errors import ConfigError, FormatError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PARTS = ("lora_A", "lora_B", "lora_magnitude")  # as `LoRAUpdate.tensors` names them
FACTORS, MAGNITUDE = PARTS[:2], PARTS[2]
NOT_WRITTEN = "Nothing was written."
GIVE_A_KEY_MAP = (  # a remedy, and the option for it
    "give a key map: load(path, keys={pattern: replacement})",
    "give a key map: --keys FILE.json, a JSON object {pattern: replacement}",
)

Names = Mapping[str, str]


def made(
    where: str,
    kind: type[LoRAUpdate],
    tensors: Mapping[str, Tensor],
    lora_alpha: float,
    use_rslora: bool = False,
    **fields: Any,
) -> LoRAUpdate:
    """An update of `kind` of `tensors`, which have the names of `LoRAUpdate.tensors`; `FormatError`, beginning with `where`,
    when these are not parts of one."""
    _check_parts(where, tensors, lora_alpha, use_rslora)
    A, B, magnitude = map(tensors.get, PARTS)
    try:
        return kind(A, B, lora_alpha, use_rslora, magnitude=magnitude, **fields)  # type: ignore[arg-type]
    except (ConfigError, TypeError) as error:
        raise FormatError(f"{where}: {error}") from None


def _check_parts(where: str, tensors: Mapping[str, Tensor], lora_alpha: object, use_rslora: object) -> None:
    for factor in tensors.values():
        if factor.shape == (0,):
            raise FormatError(
                f"{where} has no numbers in its factors, which DeepSpeed (ZeRO-3) shared among processes, perhaps; gather them "
                "(stage3_gather_16bit_weights_on_model_save) and save the adapter again."
            )
        if factor.dtype not in FLOATS:
            raise FormatError(f"{where} has factors of dtype {factor.dtype}; expected float32, float16, bfloat16 or float64.")
    known = isinstance(lora_alpha, int | float) and not isinstance(lora_alpha, bool)
    if not known or not 0 < lora_alpha < math.inf or not isinstance(use_rslora, bool):  # type: ignore[operator]
        raise FormatError(
            f"{where} has lora_alpha={lora_alpha!r}, use_rslora={use_rslora!r}; expected a positive number, a bool."
        )


def kind_of(tensors: Mapping[str, Tensor]) -> type[LoRAUpdate]:
    """The kind of an update that is not an embedding's: a convolution's where the second factor has a kernel."""
    return ConvolutionUpdate if tensors["lora_B"].dim() > 2 else LoRAUpdate


def check_sound(adapter: Adapter) -> None:
    """`FormatError` for an adapter that could be written, but not read again."""
    for name, update in adapter.layers.items():
        try:
            _check_parts(f"The update of {name!r}", update.tensors(), update.lora_alpha, update.use_rslora)
        except FormatError as error:
            raise FormatError(f"{error} Nothing was written.") from None
    if odd := [key for key, value in adapter.metadata.items() if not isinstance(key, str) or not isinstance(value, str)]:
        raise FormatError(f"The metadata {odd[0]!r} are not text; make them text. Nothing was written.")


def by_layer(where: str, stored: Mapping[str, Tensor], parts: Iterable[str]) -> tuple[dict[str, dict[str, Tensor]], set[str]]:
    """Those of `stored` whose names are `<layer>.<part>` for one of `parts`: {layer: {part: tensor}}, and the others' names."""
    found: dict[str, dict[str, Tensor]] = {}
    others = set()
    ordered = sorted(parts, key=len, reverse=True)
    for key, tensor in stored.items():
        part = next((part for part in ordered if key.endswith("." + part)), None)
        if part is None:
            others.add(key)
        elif not (layer := key.removesuffix("." + part)):
            raise FormatError(f"{where}: tensor {key!r} belongs to no layer.")
        else:
            found.setdefault(layer, {})[part] = tensor
    return found, others


def parts_of(where: str, stored: Mapping[str, Tensor], names: Names, without: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of an update, which have these `names` in a file; `FormatError` when a factor is missing, or one of another
    pair, `without`, is there."""
    if missing := [names[part] for part in FACTORS if names[part] not in stored]:
        raise FormatError(f"{where} has no {missing[0]}.")
    if more := [key for key in without if key in stored]:
        raise FormatError(f"{where} has {more[0]} and {names[PARTS[0]]}; expected the factors of one update.")
    return {part: stored[key] for part, key in names.items() if key in stored}


def named(layer: str, tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """`tensors` of the update of `layer` by the names that a file has for them."""
    return {f"{layer}.{names[part]}": tensor for part, tensor in tensors.items()}


def in_shapes_of_peft(update: LoRAUpdate) -> dict[str, Tensor]:
    """The tensors of `update`; magnitudes of a convolution are (1, out, 1…) in PEFT's and diffusers' files."""
    tensors = update.tensors()
    if update.is_dora and update.B.dim() > 2:
        tensors[MAGNITUDE] = tensors[MAGNITUDE].reshape(1, -1, *[1] * (update.B.dim() - 2))
    return tensors


def from_shapes_of_peft(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: magnitudes of a convolution (out,)."""
    B, magnitude = tensors["lora_B"], tensors.get(MAGNITUDE)
    if magnitude is not None and B.dim() > 2 and magnitude.shape == (1, len(B), *B.shape[2:]):
        return tensors | {MAGNITUDE: magnitude.flatten()}
    return tensors


def alpha_of(where: str, alpha: Tensor | None, default: float) -> float:
    """The number that a tensor of one element holds, or `default` where there is no tensor."""
    if alpha is None:
        return default
    if alpha.numel() != 1 or alpha.dtype == torch.bool or alpha.is_complex():
        raise FormatError(f"{where} has an alpha of shape {tuple(alpha.shape)} and dtype {alpha.dtype}; expected one number.")
    value = float(alpha)
    if not 0 < value < math.inf:
        raise FormatError(f"{where} has alpha={value:g}; expected a positive number.")
    return int(value) if value.is_integer() else value


def alpha_tensor(lora_alpha: float) -> Tensor:
    """A tensor of no dimension that holds `lora_alpha` exactly: in float32 where that can.

    >>> alpha_tensor(16), alpha_tensor(0.1).dtype
    (tensor(16.), torch.float64)
    """
    exact = torch.tensor(float(lora_alpha), dtype=torch.float64)
    return exact.float() if float(exact.float()) == float(exact) else exact


def common_form(name: str, update: LoRAUpdate, format: str) -> LoRAUpdate:
    """`update` as the formats of other libraries know it: the plain form of slices and of 0.1's convolutions. `FormatError` for
    one that `format`'s libraries compute otherwise or not at all."""
    transposed = isinstance(update, LegacyTransposedUpdate)
    if isinstance(update, FusedUpdate | LegacyConvolutionUpdate) and not transposed:
        update = update.plain()
    odd = {
        "is for one projection of an nn.MultiheadAttention": isinstance(update, ProjectionUpdate),
        "is for a convolution with groups, which is computed otherwise there": getattr(update, "groups", 1) > 1,
        "is for a transposed convolution": transposed or (isinstance(update, ConvolutionUpdate) and update.transposed),
        "is for a bilinear layer": type(update) is LoRAUpdate and update.A.dim() > 2,
        "is for experts": isinstance(update, ExpertsUpdate),
    }
    for what, is_so in odd.items():
        if is_so:
            raise FormatError(
                f"The update of {name!r} {what}, so that {format} cannot hold it",
                "format='safetensors' can",
                option="--format safetensors can",
                outcome=NOT_WRITTEN,
            )
    return update


def refuse(what: str, names: Iterable[str], format: str) -> None:
    """`FormatError` when there are any `names` of something that `format` cannot hold."""
    if found := sorted(names):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise FormatError(
            f"{format} has no place for {what}: {', '.join(found[:3])}{more}",
            "format='safetensors' has",
            option="--format safetensors has",
            outcome=NOT_WRITTEN,
        )
