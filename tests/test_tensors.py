"""What kind of tensor a weight is: asked once, for everybody."""

import pytest
import torch
from torch import Tensor, nn

from loralib import tensors
from models import same_bits


class Wrapped(Tensor):
    """A subclass of tensors that torch does not have."""


KINDS = {
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
