"""The weight of experts for the time of a call: what is followed, what is looked at, and what is done with the whole."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loralib as lora
from loralib.layers.dropout import no_dropout
from loralib.layers.routed_weight import RoutedWeight

E, K, D, R = 3, 5, 6, 2


def weight(p: float = 0.0, shared: bool = False) -> RoutedWeight:
    torch.manual_seed(0)
    L, R_ = torch.randn(1 if shared else E, K, R), torch.randn(E, R, D)
    return RoutedWeight.of(torch.randn(E, K, D), L, R_, 0.5, nn.Dropout(p) if p else no_dropout)


@pytest.mark.parametrize("shared", [False, True])
def test_the_effective_weight_is_that_of_each_expert(shared: bool) -> None:
    routed = weight(shared=shared)
    for e in range(E):
        expected = routed.W[e] + 0.5 * routed.L[e % len(routed.L)] @ routed.R[e]
        torch.testing.assert_close(routed.effective()[e], expected)
        torch.testing.assert_close(routed[e].effective(), expected)
        torch.testing.assert_close(routed[torch.tensor([e, 0])].effective()[0], expected)
        torch.testing.assert_close(routed.mT[e].effective(), expected.t())


def test_what_is_asked_of_it_is_answered_for_the_base() -> None:
    routed = weight()
    assert (routed.shape, routed.dtype, routed.device.type, len(routed), routed.ndim) == ((E, K, D), torch.float32, "cpu", E, 3)
    assert routed.data_ptr() == routed.W.data_ptr()
    assert routed.size(1) == K


def test_what_is_not_followed_has_the_whole_of_it() -> None:
    routed = weight()
    for function in (torch.sum, torch.Tensor.exp, lambda t: t.reshape(-1), lambda t: t[:, 1:], lambda t: torch.cat([t, t])):
        found = function(routed)
        assert type(found) is Tensor
        torch.testing.assert_close(found, function(routed.effective()))


@pytest.mark.parametrize("dim", [(0, 1), (1, 0), (0, 2)])
def test_only_the_matrices_are_transposed(dim: tuple[int, int]) -> None:
    routed = weight()
    found = routed.transpose(*dim)
    assert type(found) is Tensor
    torch.testing.assert_close(found, routed.effective().transpose(*dim))


def test_dropout_of_another_kind_acts_as_well() -> None:
    routed, x = weight(), torch.randn(4, D)
    doubled = RoutedWeight.of(routed.W, routed.L, routed.R, 0.5, lambda x: 2 * x)
    expected = F.linear(x, routed.W[1]) + x @ routed.R[1].t() @ routed.L[1].t()
    torch.testing.assert_close(F.linear(x, doubled[1]), expected)
    torch.testing.assert_close(torch.matmul(x, doubled.mT[1]), expected)


def test_it_cannot_be_copied_or_used_whole_with_dropout() -> None:
    with pytest.raises(lora.LayerError, match="while they compute"):
        copy.deepcopy(weight())
    with pytest.raises(lora.LayerError, match="set lora_dropout=0"):
        weight(0.5).sum()


@pytest.mark.parametrize("r", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_take_factors_of_any_rank(r: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    W, L, R_ = torch.randn(E, 8, 16), torch.randn(E, 8, r), torch.randn(E, r, 16)
    x, ends = torch.randn(12, 16).to(dtype), torch.tensor([4, 4, 12], dtype=torch.int32)
    routed = RoutedWeight.of(W.to(dtype), L, R_, 0.5, no_dropout)
    exact = W.to(dtype).double() + 0.5 * L.double() @ R_.double()
    expected = torch.cat([x[:4].double() @ exact[0].t(), x[4:].double() @ exact[2].t()])
    for implementation in ("reference", "autograd"):
        with lora.ops.use(implementation):
            y = torch._grouped_mm(x, routed.transpose(-2, -1), offs=ends)
        assert (y.double() - expected).abs().max() <= 32 * torch.finfo(dtype).eps * (1 + expected.abs().max())
