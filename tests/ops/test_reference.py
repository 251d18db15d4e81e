"""LoRA's arithmetic on tensors against dense algebra in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loralib import ops
from models import close, same_bits

SIZE = st.integers(0, 40)


@given(n=st.lists(st.integers(0, 3), max_size=3), d=st.integers(1, 40), k=SIZE, r=st.integers(1, 5), scaling=st.floats(-4, 4))
def test_the_update_of_the_output_is_that_of_the_weight(n, d, k, r, scaling):
    x, A, B, y = (torch.randn(*shape, dtype=torch.float64) for shape in ((*n, d), (r, d), (k, r), (*n, k)))
    expected = y + x @ ops.linear_delta(A, B, scaling).t()
    result = ops.add_linear_update(y, x, A, B, scaling)
    assert result.shape == y.shape
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-10)
    assert torch.allclose(ops.linear_delta(A, B, scaling), scaling * B @ A)


def test_derivatives_are_right():
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (2, 4), (2, 4), (3, 2))]
    assert torch.autograd.gradcheck(lambda *t: ops.add_linear_update(*t, 0.7), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: ops.add_linear_update(*t, 0.7), inputs)


def test_nothing_is_changed_in_place():
    tensors = [torch.randn(shape) for shape in ((2, 3), (2, 4), (2, 4), (3, 2))]
    before = [t.clone() for t in tensors]
    ops.add_linear_update(*tensors, 2.0)
    ops.merge_delta(tensors[0], tensors[0])
    assert all(same_bits(t, b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_merge_is_rounded_once(dtype):
    W, delta = torch.randn(50, 50).to(dtype), torch.randn(50, 50) / 64
    merged = ops.merge_delta(W, delta)
    assert merged.dtype == dtype
    assert same_bits(merged, (W.double() + delta.double()).to(torch.promote_types(dtype, torch.float32)).to(dtype))
    assert close(merged, (W.double() + delta.double()).to(dtype), factor=0.5)
