"""The update of experts: a product for each, in the layout in which their matrices are stored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import loralib as lora
from loralib.adapters import algebra
from loralib.adapters.layout import Layout
from models import close
from sample_adapters import updates, whole

KINDS = ["experts", "shared"]
F64 = [torch.float64]


@given(updates(KINDS, F64))
def test_each_expert_has_its_own_product(update: lora.ExpertsUpdate) -> None:
    delta = update.delta()
    assert delta.shape == update.canonical_shape
    for e, matrix in enumerate(delta):
        assert torch.allclose(matrix, update.scaling * update.B[e % len(update.B)] @ update.A[e % len(update.A)])


@given(updates(KINDS, F64), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_the_effective_weight_is_the_same_in_both_layouts(update: lora.ExpertsUpdate, dtype: torch.dtype) -> None:
    W = torch.randn(update.canonical_shape).to(dtype)
    plain, stored = update.effective_weight(W), update.effective_weight(W.mT.contiguous(), Layout(transposed=True))
    assert torch.equal(plain, (W.double() + update.delta()).to(dtype)) or close(plain, W.double() + update.delta(), factor=8)
    assert close(stored.mT, plain, factor=8)
    assert stored.dtype == plain.dtype == dtype


@given(st.data())
def test_updates_with_and_without_a_shared_factor_add_up(data: st.DataObject) -> None:
    first, second = (data.draw(updates([kind], F64, d=3, k=4)) for kind in KINDS)
    total = algebra.added([(first, 1.0), (second, -0.5)])
    assert total.r == first.r + second.r
    assert torch.allclose(total.delta(), first.delta() - 0.5 * second.delta(), atol=1e-9)


def test_a_truncated_update_keeps_the_leading_part_of_each_expert() -> None:
    torch.manual_seed(0)
    update = lora.ExpertsUpdate(torch.randn(3, 4, 6).double(), torch.randn(3, 5, 4).double(), 4)
    found = algebra.truncated(update, r=2)
    for before, after in zip(update.delta(), found.delta(), strict=True):
        U, S, Vh = torch.linalg.svd(before)
        assert torch.allclose(after, (U[:, :2] * S[:2]) @ Vh[:2], atol=1e-9)


def test_which_factor_is_shared() -> None:
    def shared(a: int, b: int) -> object:
        return lora.ExpertsUpdate(whole(a, 2, 3), whole(b, 4, 2), 1).shared

    assert [shared(3, 3), shared(1, 3), shared(3, 1), shared(1, 1)] == [None, "A", "B", None]


@pytest.mark.parametrize(
    ("A", "B"),
    [((3, 2, 4), (2, 5, 2)), ((3, 2, 4), (3, 5, 3)), ((2, 4), (5, 2)), ((3, 0, 4), (3, 5, 0)), ((0, 2, 4), (0, 5, 2))],
)
def test_factors_that_are_none_of_experts_are_refused(A: tuple[int, ...], B: tuple[int, ...]) -> None:
    with pytest.raises(lora.ConfigError, match="a factor that experts share"):
        lora.ExpertsUpdate(torch.ones(A), torch.ones(B), 1)


def test_experts_have_no_magnitudes() -> None:
    with pytest.raises(lora.ConfigError, match="magnitude"):
        lora.ExpertsUpdate(whole(3, 2, 4), whole(3, 5, 2), 1, magnitude=torch.ones(5))
