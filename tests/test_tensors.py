"""What kind of tensor a weight is: asked once, for everybody."""

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from loralib import tensors
from models import injected, same_bits


class Wrapped(Tensor):
    """A subclass of tensors that torch does not have."""


def partitioned(shape: tuple[int, ...]) -> nn.Parameter:
    """As DeepSpeed's ZeRO-3 marks a parameter, whether or not it is gathered."""
    W = nn.Parameter(torch.zeros(shape))
    W.ds_id = 3
    return W


KINDS = {
    "partitioned": [partitioned((0,)), partitioned((2, 2))],
    "plain": [torch.zeros(2), nn.Parameter(torch.zeros(2)), torch.zeros(0), torch.zeros(2, dtype=torch.bfloat16)],
    "missing": [None, 3.0, nn.Linear(2, 2)],
    "uninitialized": [nn.LazyLinear(3).weight],
    "quantized": [torch.zeros(2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int8, device="meta")],
    "wrapped": [torch.zeros(2).as_subclass(Wrapped)],
    "offloaded": [torch.zeros(2, device="meta"), nn.Parameter(torch.zeros(2, device="meta"))],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_of_one_kind(kind):
    assert [tensors.kind(W) for W in KINDS[kind]] == [kind] * len(KINDS[kind])


def test_a_subclass_of_tensors_is_equal_to_itself_only():
    """Not every operation works on one: torchao's have no `view`."""
    W = torch.zeros(2).as_subclass(Wrapped)
    assert tensors.same_bits(W, W)
    assert not tensors.same_bits(W, torch.zeros(2).as_subclass(Wrapped))
    assert not tensors.same_bits(W, torch.zeros(2))


def torchaos(name: str, **fields: object) -> Tensor:
    """A stand-in for a weight that torchao quantized."""
    W = torch.zeros(4, 4).as_subclass(type(name, (Tensor,), {"__module__": "torchao.quantization"}))
    vars(W).update(fields)
    return W


DYNAMIC = [
    torchaos("Int8Tensor", act_quant_kwargs=object()),
    torchaos("Float8Tensor", act_quant_kwargs=object()),
    torchaos("IntxUnpackedToInt8Tensor", activation_quantization="int8_asym_per_token"),
    torchaos("LinearActivationQuantizedTensor"),
]
WEIGHTS_ONLY = [
    torchaos("Int8Tensor", act_quant_kwargs=None),
    torchaos("IntxUnpackedToInt8Tensor", activation_quantization=None),
    torch.zeros(2).as_subclass(Wrapped),
    torch.zeros(2),
    None,
]


def test_weights_that_quantize_their_input_are_told_from_the_others():
    assert all(map(tensors.quantizes_input, DYNAMIC))
    assert not any(map(tensors.quantizes_input, WEIGHTS_ONLY))


@pytest.mark.parametrize("W", DYNAMIC, ids=lambda W: type(W).__name__)
def test_and_are_not_adapted(W):
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = lora.extract(injected(nn.Sequential(nn.Linear(4, 4))))
    model[0]._parameters["weight"] = W
    message = f"torchao's {type(W).__name__}, quantizes its input too, so that no gradient passes"
    with pytest.raises(lora.TargetError, match=message):
        lora.inject(model, lora.LoRAConfig(r=2))
    with pytest.raises(lora.AttachError, match=message):
        lora.attach(model, adapter)
    assert type(model[0]) is nn.Linear
    later = injected(nn.Sequential(nn.Linear(4, 4)))
    later[0]._parameters["weight"] = W
    with pytest.raises(lora.LayerError, match="The weight of '0' quantizes its input too"):
        lora.mark_only_lora_as_trainable(later)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_bits_are_what_tells_two_tensors_apart(dtype):
    a = torch.arange(6).reshape(2, 3).to(dtype)
    assert tensors.same_bits(a, a.clone())
    assert not tensors.same_bits(a, a.reshape(3, 2))
    assert not tensors.same_bits(a, a.double())
    assert tensors.as_bytes(a).numel() == a.nbytes
    zeros = torch.zeros(2)
    assert not tensors.same_bits(zeros, -zeros)
    assert same_bits(a, a)


def test_a_merged_model_is_quantized_as_a_whole():
    """As torchao's `quantize_` does it: each weight is replaced by one of a subclass, made of what is there."""
    model, x = injected(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))), torch.randn(3, 4)
    lora.merge(model)
    y = model(x)
    for layer in model:
        with pytest.warns(UserWarning, match="update"):
            layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Wrapped), requires_grad=False)
    assert all(isinstance(layer.weight, Wrapped) for layer in model)
    assert torch.allclose(model(x).as_subclass(Tensor), y, atol=1e-5)
