"""Quantized weights: what a layer computes with, and how a changed weight is quantized as the old one was.

This is the only file that knows the packages they come from, which are imported when a weight is used. A row recognises a
layer with its weight, and says two things of it:

    dense(W)                 the weight (out, in) that the layer computes with
    requantize(W')           W' quantized in the same way; None where that is not known

    bitsandbytes             nf4 and fp4, with or without double quantization, and int8
    torchao                  weight-only kinds: int8, float8, intx. Kinds that quantize the input too are refused elsewhere,
                             since no gradient passes through them
    optimum-quanto           int8, float8 and int4 weights

What an update adds is computed next to the quantized product, in the factors' own precision. Merged into the dequantized
weight it is all there; quantized again, of a small update little may be left: `share_lost` measures it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .choices import QuantizedBase

PACKAGE = "bitsandbytes"  # by which `quantized` works
_BNB = f"{PACKAGE}.nn.modules."
_TORCHAO = "torchao."
_QUANTO = "optimum.quanto.tensor.weights."


@dataclass(frozen=True)
class Quantized:
    """A layer's quantized weight.

    kind: what it is, in words. dense: the weight (out, in) in the dtype that the layer computes in. requantize: a Parameter
    that holds another weight in the same way. by_layer: whether only the layer's own forward can multiply with it.
    has_dtype: whether that of `dense` is the layer's, and not the widest because nothing says it.
    """

    kind: str
    dense: Callable[[], Tensor]
    requantize: Callable[[Tensor], nn.Parameter] | None
    by_layer: bool
    has_dtype: bool = True


def of(layer: nn.Module, W: Any) -> Quantized | None:
    """What is known of the weight `W` of `layer`; None where it is not quantized, or in a way that is not known.

    >>> of(nn.Linear(2, 2), nn.Linear(2, 2).weight) is None
    True
    """
    if not isinstance(W, Tensor) or type(W) in (Tensor, nn.Parameter):
        return None
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(W).__mro__}
    if _BNB + "Params4bit" in names:
        return _of_four_bits(layer, W)
    if _BNB + "Int8Params" in names:
        return _of_int8(layer, W)
    if type(W).__module__.startswith(_TORCHAO) and callable(getattr(W, "dequantize", None)):
        return _of_torchao(W)
    if any(name.startswith(_QUANTO) for name in names):
        return _of_quanto(W)
    return None


_UNKNOWN = {
    "hqq": "HQQ",
    "gptqmodel": "GPTQ",
    "auto_gptq": "GPTQ",
    "awq": "AWQ",
    "aqlm": "AQLM",
    "eetq": "EETQ",
    "vptq": "VPTQ",
}


def problem(layer: nn.Module) -> str | None:
    """Why no update can be put on a layer that is quantized in a way that this file does not know, or None.

    >>> problem(nn.Linear(2, 2)) is None
    True
    """
    if package := _UNKNOWN.get(type(layer).__module__.partition(".")[0]):
        return (
            f"{type(layer).__name__} layers are quantized by {package}, which is not supported; quantize the plain model with "
            "bitsandbytes, torchao or optimum-quanto instead"
        )
    if "quantization_scheme" in vars(layer) and getattr(layer, "quantization_enabled", True):
        return (
            "compressed-tensors quantizes its weight at every call, so that what is merged into it would be lost; load the "
            "model with CompressedTensorsConfig(run_compressed=False) and apply "
            "compressed_tensors.quantization.disable_quantization to it first"
        )
    return None


def fits(linear: nn.Linear, kind: QuantizedBase) -> bool:
    """Whether a layer can be quantized as `kind` on every processor: in 4 bits, blocks of 64 inputs and 32 outputs.

    >>> fits(nn.Linear(64, 32), "nf4"), fits(nn.Linear(64, 2), "nf4"), fits(nn.Linear(64, 2), "int8")
    (True, False, True)
    """
    return kind == "int8" or not (linear.in_features % 64 or linear.out_features % 32)


def quantized(linear: nn.Linear, kind: QuantizedBase) -> nn.Module:
    """A layer that computes as `linear`, with its weight in 4 or 8 bits, by bitsandbytes; the bias is shared."""
    from bitsandbytes import nn as found

    bnb: Any = found
    sizes, W = (linear.in_features, linear.out_features), linear.weight
    if kind == "int8":
        made = bnb.Linear8bitLt(*sizes, bias=linear.bias is not None, has_fp16_weights=False, device="meta")
        made.weight = bnb.Int8Params(W.detach().cpu(), requires_grad=False, has_fp16_weights=False)
    else:
        options = {"quant_type": kind, "compress_statistics": True}
        made = bnb.Linear4bit(*sizes, bias=linear.bias is not None, compute_dtype=W.dtype, device="meta", **options)
        made.weight = bnb.Params4bit(W.detach().cpu(), requires_grad=False, module=made, **options)
    made.bias = linear.bias
    made.training = linear.training
    done: nn.Module = made.to(W.device)
    return done


def count(W: Tensor) -> int:
    """How many numbers a weight stands for: of four bits it holds two in a byte.

    >>> count(nn.Linear(3, 2).weight)
    6
    """
    state: Any = getattr(W, "quant_state", None)
    return W.numel() if state is None else int(state.shape.numel())


def stay_trainable(layer: Any, W: Any) -> dict[str, Any]:
    """See to it that gradients go on passing through a layer with the weight `W`; the attributes of the layer that were changed
    for it, as they were.

    On processors with AVX-512 BF16, bitsandbytes packs a weight of four bits again when it computes without gradients, and
    cannot train with it afterwards: so that is switched off, and undone where it has happened.
    """
    if not isinstance(W, Tensor) or f"{type(W).__module__}.{type(W).__qualname__}" != _BNB + "Params4bit":
        return {}
    state: Any = getattr(W, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        packed: Any = W
        packed.data, packed.quant_state = _unpacked(packed.data, state)
    before = {name: vars(layer)[name] for name in ("support_avx512bf16_for_cpu",) if name in vars(layer)}
    vars(layer).update(dict.fromkeys(before, False))
    return before


def share_lost(W: Tensor, changed: Tensor, again: Tensor) -> float:
    """How much of an update is lost when the weight `changed`, which was `W` before, is quantized to `again`: 1 minus what is
    left of it along itself, and 0 without an update.

    >>> import torch
    >>> W, changed = torch.zeros(2, 2), torch.ones(2, 2)
    >>> share_lost(W, changed, changed / 4), share_lost(W, changed, changed)
    (0.75, 0.0)
    """
    delta = changed.double() - W.double()
    total = float(delta.square().sum())
    return 1 - float(((again.double() - W.double()) * delta).sum()) / total if total else 0.0


# --- bitsandbytes ---------------------------------------------------------------------------------------------------


def _of_four_bits(layer: Any, W: Any) -> Quantized | None:
    state = W.quant_state if W.quant_state is not None else getattr(layer, "quant_state", None)
    if state is None:  # not quantized yet: that happens when it is moved to its device
        return None

    def dense() -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        packed = getattr(state, "packing_format_for_cpu", False)
        data, usual = _unpacked(W.data, state) if packed else (W.data, state)
        found: Tensor = dequantize_4bit(data, usual)
        return found.reshape(state.shape)

    def requantize(changed: Tensor) -> nn.Parameter:
        fields = ("blocksize", "compress_statistics", "quant_type", "quant_storage")
        options = {name: getattr(W, name) for name in fields}
        made: nn.Parameter = type(W)(changed.to(state.dtype).cpu(), requires_grad=False, **options)
        return made.to(W.device)  # type: ignore[return-value]

    return Quantized(f"bitsandbytes {state.quant_type}", dense, requantize, by_layer=True)


def _unpacked(data: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A weight of four bits as it was before it was packed for a processor."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    found: tuple[Tensor, Any] = _convert_weight_packed_for_cpu_inverse(data, copy.copy(state))
    return found


def _of_int8(layer: Any, W: Any) -> Quantized | None:
    state = vars(layer).get("state")
    CB = state.CB if state is not None and state.CB is not None else W.CB
    SCB = state.SCB if state is not None and state.SCB is not None else W.SCB
    if CB is None or SCB is None:
        return None

    def dense() -> Tensor:
        found: Tensor = CB.float() * (SCB.float() / 127).unsqueeze(1)
        return found if layer.bias is None else found.to(layer.bias.dtype)

    return Quantized("bitsandbytes int8", dense, None, by_layer=True, has_dtype=layer.bias is not None)


# --- torchao --------------------------------------------------------------------------------------------------------


def _of_torchao(W: Any) -> Quantized:
    requantize = _TORCHAOS.get(type(W).__name__)
    known = requantize is not None and _one_scale_per_part(W)

    def dense() -> Tensor:
        found: Tensor = W.dequantize()
        return found

    def again(changed: Tensor) -> nn.Parameter:
        assert requantize is not None
        return nn.Parameter(requantize(W, changed.to(W.dtype)), requires_grad=False)

    return Quantized(f"torchao {type(W).__name__}", dense, again if known else None, by_layer=False)


def _one_scale_per_part(W: Any) -> bool:
    """Whether rows, groups of a row, or all numbers share a scale, and not those of a block, say."""
    first, width = getattr(W, "block_size", (0, 0))
    return first == 1 or (first, width) == tuple(W.shape)


def _granularity(W: Any) -> Any:
    """How many numbers share a scale, as torchao says it: rows, groups of a row, or all."""
    from torchao.quantization import PerGroup, PerRow, PerTensor

    _, width = W.block_size
    if tuple(W.block_size) == tuple(W.shape):
        return PerTensor()
    return PerRow() if width == W.shape[1] else PerGroup(width)


def _mapping(W: Any) -> Any:
    """Whether the numbers of a scale lie around zero."""
    from torchao.quantization.quant_primitives import MappingType

    return MappingType.ASYMMETRIC if W.zero_point is not None and bool(W.zero_point.any()) else MappingType.SYMMETRIC


def _int8(W: Any, changed: Tensor) -> Any:
    return type(W).from_hp(changed, _granularity(W), mapping_type=_mapping(W))


def _float8(W: Any, changed: Tensor) -> Any:
    options = {"granularity": _granularity(W), "mm_config": W.mm_config, "kernel_preference": W.kernel_preference}
    return type(W).from_hp(changed, W.qdata.dtype, **options)


def _intx(W: Any, changed: Tensor) -> Any:
    """With scales of its own, or with the old ones, whichever is closer: with new ones even an unchanged weight moves."""
    given = (changed, tuple(W.block_size), W.target_dtype)
    made = [type(W).from_hp(*given, mapping_type=_mapping(W))]
    old = {"custom_scale": W.scale, "custom_zero_point": W.zero_point, "intx_choose_qparams_algorithm": None}
    made += [type(W).from_hp(*given, **old)]
    return min(made, key=lambda again: float((again.dequantize() - changed).norm()))


_TORCHAOS: dict[str, Callable[[Any, Tensor], Any]] = {
    "Int8Tensor": _int8,
    "Float8Tensor": _float8,
    "IntxUnpackedToInt8Tensor": _intx,
}


# --- optimum-quanto -------------------------------------------------------------------------------------------------


def _of_quanto(W: Any) -> Quantized:
    """By the layer only: it would quantize a dense weight again at every call."""

    def dense() -> Tensor:
        found: Tensor = W.dequantize()
        return found

    def requantize(changed: Tensor) -> nn.Parameter:
        from optimum import quanto

        kinds: Any = quanto
        layout = {"qtype": W.qtype, "axis": W.axis}
        if W.qtype.bits == 8:
            scale, more = kinds.AbsmaxOptimizer()(changed, **layout), {"activation_qtype": W.activation_qtype}
        else:
            layout["group_size"] = W._group_size
            scale, shift = kinds.MaxOptimizer()(changed, **layout)
            more = {"shift": shift}
        return nn.Parameter(kinds.quantize_weight(changed, scale=scale, **layout, **more), requires_grad=False)

    return Quantized(f"quanto {W.qtype.name}", dense, requantize, by_layer=True)
