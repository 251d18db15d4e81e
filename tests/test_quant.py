"""What is known of quantized weights: their kinds, the weight they stand for, and what quantizing again loses."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import loralib as lora
from loralib import quant, tensors
from peers import quantizer
from quantized_kinds import KINDS, TAKEN, linear


@pytest.mark.parametrize("kind", TAKEN)
def test_a_kind_is_known_with_its_weight(kind: str) -> None:
    plain = linear()
    layer = KINDS[kind](plain)
    found = quant.of(layer, layer.weight)
    assert found is not None
    assert found.kind.startswith(kind.partition(" ")[0])
    W = found.dense()
    assert W.shape == plain.weight.shape
    assert 0 < (W - plain.weight).norm() < 0.2 * plain.weight.norm()
    y = layer(torch.eye(64, requires_grad=True)).detach()
    torch.testing.assert_close(y - plain.bias, W.t(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("W", [None, torch.ones(2, 2), nn.Parameter(torch.ones(2, 2)), torch.ones(2, 2, dtype=torch.int8), "W"])
def test_anything_else_is_not(W: object) -> None:
    assert quant.of(nn.Linear(2, 2), W) is None


def test_a_layer_that_was_not_quantized_yet_is_not_known() -> None:
    bnb = quantizer("bitsandbytes").nn
    for layer in (bnb.Linear4bit(64, 64), bnb.Linear8bitLt(64, 64, has_fp16_weights=False)):
        assert quant.of(layer, layer.weight) is None


def test_how_much_of_an_update_is_lost() -> None:
    W = torch.randn(4, 4)
    changed = W + torch.randn(4, 4)
    assert quant.share_lost(W, changed, changed) == pytest.approx(0)
    assert quant.share_lost(W, changed, W) == pytest.approx(1)
    assert quant.share_lost(W, changed, W + 0.25 * (changed - W)) == pytest.approx(0.75)
    assert quant.share_lost(W, W, changed) == 0.0


@pytest.mark.parametrize(("module", "said"), [("hqq.core", "HQQ"), ("gptqmodel.nn_modules", "GPTQ"), ("awq.modules", "AWQ")])
def test_layers_of_other_packages_are_refused_by_name_and_listed_as_left_out(module: str, said: str) -> None:
    other: Any = type("OtherLinear", (nn.Module,), {"__module__": module})()
    other.register_buffer("W_q", torch.zeros(4, 4, dtype=torch.uint8))
    other.in_features = other.out_features = 4
    with pytest.raises(lora.TargetError, match=rf"'1' of Sequential cannot be adapted: OtherLinear.*by {said}"):
        lora.inject(nn.Sequential(nn.Linear(4, 4), other), lora.LoRAConfig(r=1, target_modules=["1"]))
    found = lora.inject(nn.Sequential(nn.Linear(4, 4), other), lora.LoRAConfig(r=1))
    assert list(found) == ["0"]
    assert f"quantized by {said}" in found.left_out["1"]


def compressed(form: str, bits: int, kind: str, largest: float) -> nn.Sequential:
    """A layer that compressed-tensors compressed, with one scale per output."""
    found = quantizer("compressed_tensors.quantization")
    args = found.QuantizationArgs(num_bits=bits, type=kind, strategy="channel", symmetric=True)
    scheme = found.QuantizationScheme(targets=["Linear"], weights=args, format=form)
    config = found.QuantizationConfig(config_groups={"all": scheme}, format=form)
    model = nn.Sequential(linear())
    found.apply_quantization_config(model, config)
    model[0].weight_scale.data.copy_(model[0].weight.detach().abs().amax(1, keepdim=True) / largest)
    model[0].quantization_status = found.QuantizationStatus.FROZEN
    compressors: Any = quantizer("compressed_tensors.compressors")
    compressors.ModelCompressor(quantization_config=config).compress_model(model)
    return model


@pytest.mark.parametrize(
    ("form", "bits", "kind", "largest"),
    [("int-quantized", 8, "int", 127), ("pack-quantized", 4, "int", 7), ("float-quantized", 8, "float", 448)],
)
def test_layers_of_compressed_tensors_are_refused_until_they_are_plain(form: str, bits: int, kind: str, largest: float) -> None:
    model, x = compressed(form, bits, kind, largest), torch.randn(3, 64)
    config = lora.LoRAConfig(r=4, target_modules=["0"])

    def refused(message: str) -> None:
        before = {name: t.clone() for name, t in model[0].state_dict().items()}
        with pytest.raises(lora.TargetError, match=message):
            lora.inject(model, config)
        assert type(model[0]) is nn.Linear
        assert all(tensors.same_bits(t, before[name]) for name, t in model[0].state_dict().items())

    refused("compressed-tensors quantizes its weight.*disable_quantization")
    y = model(x)  # which decompresses it
    refused("compressed-tensors quantizes its weight.*disable_quantization")
    model.apply(quantizer("compressed_tensors.quantization").disable_quantization)
    torch.testing.assert_close(model(x), y)
    refused("its parameters are in a CPUCache.*remove_dispatch")
    quantizer("compressed_tensors.offload").remove_dispatch(model)
    W = model[0].weight.detach().clone()
    lora.inject(model, config)
    nn.init.normal_(model[0].lora_B)
    y = model(x)
    assert lora.merge(model) == {}
    torch.testing.assert_close(model(x), y, atol=1e-4, rtol=1e-4)
    lora.unmerge(model)
    assert torch.equal(model[0].weight, W)


@pytest.mark.parametrize("module", [nn.Linear(64, 64), nn.MultiheadAttention(64, 2)], ids=lambda module: type(module).__name__)
def test_a_module_that_was_taken_into_a_cache_later_is_not_merged(module: nn.Module) -> None:
    model = nn.Sequential(copy.deepcopy(module))
    lora.inject(model, lora.LoRAConfig(r=4))
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    for name, factor in model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(factor)
            weights[name] = factor.detach().clone()
    dispatched = quantizer("compressed_tensors.offload").dispatch_model(model)
    with pytest.raises(lora.LayerError, match="its parameters are in a CPUCache"):
        lora.merge(model)
    quantizer("compressed_tensors.offload").remove_dispatch(dispatched)
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
