"""What keeps an update from being merged: numbers that are not finite, sums beyond float16, shapes and devices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import loralib as lora
from loralib.adapters.layout import Layout
from loralib.adapters.soundness import merge_problem, not_finite, not_finite_tensor, overflowed


def update_of(a: float = 1.0, b: float = 1.0, r: int = 1, alpha: float = 1.0) -> lora.LoRAUpdate:
    return lora.LoRAUpdate(torch.full((r, 8), a), torch.full((6, r), b), alpha)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_not_finite_is_named_and_counted(value, dtype):
    update = update_of()
    update.A[0, 3] = value
    found = lora.LoRAUpdate(update.A.to(dtype), update.B.to(dtype), 1)
    assert not_finite(found) == "its lora_A holds 1 number that is not finite, of 8"
    assert not_finite(lora.LoRAUpdate(found.A[:, :3], found.B, 1)) is None
    assert not_finite(lora.LoRAUpdate(torch.ones(1, 8), torch.full((6, 1), value), 1)).startswith("its lora_B holds 6 numbers")
    of_dora = lora.LoRAUpdate(torch.ones(1, 8), torch.ones(6, 1), 1, magnitude=torch.full((6,), value))
    assert "lora_magnitude" in not_finite(of_dora)
    assert not_finite_tensor("it", torch.tensor([1.0, value])) == "it holds 1 number that is not finite, of 2"


@given(
    W=st.floats(-65000, 65000),
    a=st.floats(-300, 300),
    b=st.floats(-300, 300),
    alpha=st.floats(0.1, 50),
    r=st.integers(1, 3),
)
def test_a_sum_is_refused_exactly_when_it_is_beyond_float16(W, a, b, alpha, r):
    update, weight = update_of(a, b, r, alpha), torch.full((6, 8), W, dtype=torch.float16)
    fits = bool(update.effective_weight(weight).isfinite().all())
    assert (merge_problem(update, weight, Layout()) is None) == fits
    assert merge_problem(update, weight.bfloat16(), Layout()) is None


def test_a_weight_that_holds_infinities_already_is_not_blamed_on_the_update():
    weight = torch.full((6, 8), torch.inf, dtype=torch.float16)
    assert merge_problem(update_of(), weight, Layout()) is None
    assert overflowed(weight, weight) is None
    assert "65504" in overflowed(torch.full((2,), 1e6), torch.full((2,), 1e6).half())


def test_shapes_and_devices_must_go_together():
    assert "shape (5, 8), and its update is for (6, 8)" in merge_problem(update_of(), torch.ones(5, 8), Layout())
    assert merge_problem(update_of(), torch.ones(8, 6), Layout(transposed=True)) is None
    assert "the weight on meta" in merge_problem(update_of(), torch.ones(6, 8, device="meta"), Layout())
