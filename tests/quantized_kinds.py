"""Linear layers with quantized weights, as the packages make them, and a small model of them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import loralib as lora
from peers import quantizer

D, K = 64, 128


def _four_bits(kind: str, double: bool) -> Callable[[nn.Linear], nn.Module]:
    def made(linear: nn.Linear) -> nn.Module:
        bnb = quantizer("bitsandbytes").nn
        options = {"quant_type": kind, "compress_statistics": double, "compute_dtype": linear.weight.dtype}
        return _filled(bnb.Linear4bit(D, K, bias=linear.bias is not None, **options), linear)

    return made


def _int8(linear: nn.Linear) -> nn.Module:
    layer = quantizer("bitsandbytes").nn.Linear8bitLt(D, K, bias=linear.bias is not None, has_fp16_weights=False)
    return _filled(layer, linear)


def _filled(layer: Any, linear: nn.Linear) -> nn.Module:
    layer.load_state_dict(linear.state_dict(), strict=False)
    made: nn.Module = layer.to("cpu")  # when it is quantized
    return made


def _torchao(config: str, *options: Any) -> Callable[[nn.Linear], nn.Module]:
    def made(linear: nn.Linear) -> nn.Module:
        quantization = quantizer("torchao.quantization")
        model = nn.Sequential(copy.deepcopy(linear))
        quantization.quantize_(model, getattr(quantization, config)(*options))
        return model[0]

    return made


def _quanto(kind: str) -> Callable[[nn.Linear], nn.Module]:
    def made(linear: nn.Linear) -> nn.Module:
        quanto = quantizer("optimum.quanto")
        model = nn.Sequential(copy.deepcopy(linear))
        quanto.quantize(model, weights=getattr(quanto, kind))
        quanto.freeze(model)
        return model[0]

    return made


KINDS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "bitsandbytes nf4": _four_bits("nf4", False),
    "bitsandbytes nf4, double quantization": _four_bits("nf4", True),
    "bitsandbytes fp4": _four_bits("fp4", False),
    "bitsandbytes int8": _int8,
    "torchao int8, weights only": _torchao("Int8WeightOnlyConfig"),
    "torchao float8, weights only": _torchao("Float8WeightOnlyConfig"),
    "torchao int4, weights only (intx)": _torchao("IntxWeightOnlyConfig", torch.int4),
    "quanto int8": _quanto("qint8"),
    "quanto float8": _quanto("qfloat8"),
    "quanto int4": _quanto("qint4"),
    "torchao int8, inputs too": _torchao("Int8DynamicActivationInt8WeightConfig"),
}
REFUSED = ("torchao int8, inputs too",)
TAKEN = [kind for kind in KINDS if kind not in REFUSED]


def linear(bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, K, bias=bias, dtype=dtype)


def model_of(kind: str, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A plain layer (32, D), and a quantized one (D, K)."""
    last = KINDS[kind](linear(bias, dtype))
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(32, D, dtype=dtype), last)


def adapted(kind: str, **how: Any) -> Any:
    """The model with a random update on its quantized layer."""
    model = model_of(kind, **how)
    lora.inject(model, lora.LoRAConfig(r=4, lora_alpha=8, target_modules=["1"]))
    lora.mark_only_lora_as_trainable(model)
    torch.manual_seed(2)
    with torch.no_grad():
        model[1].lora_B.normal_(0, 0.1)
    return model
