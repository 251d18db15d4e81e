"""Products with a big or a small matrix are that product, whichever order and kernel is chosen."""

import pytest
import torch
from torch import Tensor

from loralib.ops import onednn
from loralib.ops.autograd import gemm
from models import close
from steps import DTYPES

KERNELS = [False, pytest.param(True, marks=pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN"))]


def whole(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small whole numbers, of which sums of products are exact in any order and in every dtype."""
    return torch.randint(-2, 3, shape).to(dtype)


def expected(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    y = (x.double().unsqueeze(-2) * W.double()).sum(-1)
    return y if b is None else y + b.double()


@pytest.mark.parametrize("how", KERNELS)
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_with_a_big_matrix_is_its_formula(how, shape, bias):
    x, W, b = whole(*shape, 7), whole(9, 7), whole(9) if bias else None
    assert torch.equal(gemm.big(x, W, b, how).double(), expected(x, W, b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("r", [1, 2, 15, 16, 17])
@pytest.mark.parametrize("strided", [False, True])
def test_a_product_with_a_small_matrix_is_its_formula(dtype, r, strided):
    x, A = whole(6, 5, dtype=dtype), whole(r, 5, dtype=dtype)
    A = A.t().contiguous().t() if strided else A
    y = gemm.shrink(x, A)
    assert y.dtype == dtype
    assert torch.equal(y.double(), expected(x, A))


@pytest.mark.parametrize("how", KERNELS)
@pytest.mark.parametrize("r", [2, 16])
def test_both_kernels_take_factors_of_any_strides(how, r):
    x, A = whole(5, 6).t(), whole(5, r).t()
    assert torch.equal(gemm.shrink(x, A, how).double(), expected(x, A))


@pytest.mark.parametrize("dtype", gemm.LOW)
def test_a_large_x_of_low_precision_gives_the_same_product(dtype):
    x, A = torch.randn(1 << 12, 1 << 9).to(dtype), torch.randn(2, 1 << 9).to(dtype)
    assert x.numel() == 1 << 21
    assert close(gemm.shrink(x, A), (x.float() @ A.float().t()).to(dtype), factor=4)
    assert close(gemm.shrink(x, A)[:8], gemm.shrink(x[:8], A), factor=4)
