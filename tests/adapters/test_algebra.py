"""Arithmetic on updates acts on ΔW, and what it gives is still an update of the same kind."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import loralib as lora
from loralib.adapters import algebra
from sample_adapters import ALL, updates

WIDE = (torch.float32, torch.float64)


def dense(update: lora.LoRAUpdate) -> Tensor:
    return replace(update, A=update.A.double(), B=update.B.double()).delta()


@pytest.mark.parametrize("kind", ALL)
@given(data=st.data(), c=st.sampled_from([2, -0.3, 0, 1e-3]))
def test_scaling_scales_the_update(kind, data, c):
    update = data.draw(updates([kind]))
    found = algebra.scaled(update, c)
    assert type(found) is type(update)
    assert torch.allclose(dense(found), c * dense(update), rtol=1e-12)
    assert found.lora_alpha > 0
    assert algebra.scaled(update, 1) is update


def test_scaling_wants_a_finite_number():
    update = lora.LoRAUpdate(torch.ones(1, 2), torch.ones(2, 1), 1)
    with pytest.raises(lora.AlgebraError, match="finite"):
        algebra.scaled(update, float("inf"))
    with pytest.raises(lora.AlgebraError, match="DoRA"):
        algebra.scaled(replace(update, magnitude=torch.ones(2)), 2)


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_truncation_keeps_kind_scaling_and_what_there_is_to_keep(kind, data):
    update = data.draw(updates([kind], WIDE))
    doubled = algebra.added([(update, 1), (update, 1)])
    found = algebra.truncated(doubled, energy=1)
    assert type(found) is type(update)
    assert found.r <= doubled.r
    assert abs(found.scaling - doubled.scaling) < 1e-9 * doubled.scaling
    scale = float(dense(doubled).norm())
    assert float((dense(found) - dense(doubled)).norm()) <= 1e-5 * scale
    cut = algebra.truncated(doubled, update.r)
    assert cut.r == update.r
    assert float((dense(cut) - dense(doubled)).norm()) <= 1e-5 * scale
    assert algebra.truncated(update, update.r) is update
    assert algebra.truncated(update, 99) is update


@settings(max_examples=40, deadline=None)
@given(updates(["linear", "embedding", "conv", "grouped", "bilinear", "projection"], WIDE, r=4), st.floats(0.1, 0.999))
def test_energy_chooses_the_smallest_rank_that_keeps_it(update, energy):
    S = algebra.spectrum(update).square()
    r = algebra.truncated(update, energy=energy).r
    assert S[:r].sum() >= energy * S.sum() * (1 - 1e-9)
    assert r == 1 or S[: r - 1].sum() < energy * S.sum() * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(updates(ALL, WIDE))
def test_the_spectrum_is_that_of_the_dense_update(update):
    matrix = dense(update)
    if isinstance(update, lora.EmbeddingUpdate):
        matrix = matrix.t()
    if isinstance(update, lora.ExpertsUpdate):
        matrix = torch.block_diag(*matrix)
    S = torch.linalg.svdvals(matrix.flatten(1))
    found = algebra.spectrum(update)
    n = min(len(S), len(found))
    assert torch.allclose(found[:n], S[:n], atol=1e-5 * float(S[0]))
    assert float(S[n:].norm()) < 1e-5 * float(S[0])


@settings(max_examples=60, deadline=None)
@given(updates(["legacy", "merged"], WIDE))
def test_the_plain_form_is_the_same_update(update):
    assert torch.allclose(dense(update.plain()), dense(update), atol=1e-5 * float(dense(update).abs().max()))


def test_factors_that_are_not_finite_are_refused():
    update = lora.LoRAUpdate(torch.tensor([[float("nan"), 1]]), torch.ones(2, 1), 1)
    for operation in (algebra.spectrum, lambda u: algebra.truncated(u, energy=0.5)):
        with pytest.raises(lora.AlgebraError, match="its lora_A holds 1 number that is not finite"):
            operation(update)


def test_dora_computes_what_its_paper_says():
    A, B, W, m = torch.randn(2, 5), torch.randn(4, 2), torch.randn(4, 5), torch.rand(4)
    update = lora.LoRAUpdate(A, B, 6, magnitude=m)
    V = W + 3 * B @ A
    expected = torch.stack([m[i] * V[i] / V[i].square().sum().sqrt() for i in range(4)])
    assert torch.allclose(update.effective_weight(W), expected, atol=1e-6)
    with pytest.raises(lora.AlgebraError, match="effective_weight"):
        update.delta()
    with pytest.raises(lora.ConfigError, match="one number an output"):
        lora.LoRAUpdate(A, B, 6, magnitude=torch.rand(5))
    with pytest.raises(lora.ConfigError, match="FusedUpdate"):
        lora.FusedUpdate(A, B, 6, False, (True,), (4,), magnitude=m)


@settings(max_examples=40, deadline=None)
@given(updates(ALL))
def test_the_effective_weight_is_rounded_once(update):
    W = torch.randn(update.delta().shape).bfloat16()
    exact = W.double() + dense(update)
    found = update.effective_weight(W)
    assert found.dtype == torch.bfloat16
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5 * exact.abs().max()).all()
