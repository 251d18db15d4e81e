"""Spectra: the singular values of ΔW, and the ranks and norms that follow from them."""

import math

import numpy as np
import planted
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import F64, SIZES, adapter, dense, drawn

import loralib as lora
from loralib.analysis import Spectrum, spectra
from loralib.analysis.spectra import spectrum_of

VALUES = st.lists(st.floats(0, 1e4).map(lambda x: round(x, 3)), max_size=9).map(lambda v: tuple(sorted(v, reverse=True)))


@given(SIZES)
def test_the_values_are_those_of_the_dense_matrix(sizes: tuple[int, ...]) -> None:
    k, n, r, _, seed = sizes
    update = drawn(k, n, r, seed)
    found = spectra(adapter(q=update))["q"]
    assert (found.r, found.lora_alpha, found.intruders) == (update.r, update.lora_alpha, None)
    assert found.values is not None
    assert np.abs(np.array(found.values) - np.linalg.svd(dense(update))[1][: update.r]).max() <= 1e-12 * found.values[0]
    assert found.norm == pytest.approx(np.linalg.norm(dense(update)))


def test_slices_of_a_fused_projection_stand_apart_or_together() -> None:
    q, v = drawn(4, 6, 2, 0), drawn(3, 6, 2, 5)
    fused = lora.FusedUpdate(torch.cat([q.A, v.A]), torch.cat([q.B, v.B]), 3, enable_lora=(True, False, True), widths=(4, 5, 3))
    found = spectra(adapter(qkv=fused, o=q))
    assert list(found) == ["qkv[0]", "qkv[2]", "o"]
    assert found["qkv[0]"].values == pytest.approx(found["o"].values)
    assert found["qkv[2]"].values == pytest.approx(spectrum_of(v).values)
    whole = spectrum_of(fused, intruders=3)
    assert (whole.intruders, whole.r) == (3, 2)
    assert whole.values == pytest.approx(tuple(np.linalg.svd(dense(fused))[1][:4]))


@given(VALUES, st.floats(0.01, 1))
def test_ranks_and_norms_by_their_definitions(values: tuple[float, ...], energy: float) -> None:
    found, S = Spectrum(9, 4, values), np.array(values)
    total = (S**2).sum()
    assert found.norm == pytest.approx(math.sqrt(total))
    if not total:
        assert (found.stable_rank, found.effective_rank, found.rank_at(energy)) == (0.0, 0.0, 0)
        return
    rank = int((S > 0).sum())
    assert 1 - 1e-9 <= found.stable_rank <= rank + 1e-9
    assert found.stable_rank == pytest.approx(total / S[0] ** 2)
    p = S[S > 0] / S.sum()
    assert found.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert 1 - 1e-9 <= found.effective_rank <= rank + 1e-9
    at = found.rank_at(energy)
    assert 1 <= at <= rank
    assert (S[:at] ** 2).sum() >= energy * total * (1 - 1e-9)
    assert (S[: at - 1] ** 2).sum() < energy * total


@pytest.mark.parametrize(
    ("values", "rank"),
    [((3.0, 0.1), 1), ((1.0, 1.0), 2), ((0.0, 0.0), 0), ((), 0), (None, 0), ((1.0, 0.11, 0.0), 2), ((1.0, 0.1, 0.0), 1)],
)
def test_the_rank_that_carries_99_percent(values: tuple[float, ...] | None, rank: int) -> None:
    assert Spectrum(2, 4, values).rank_at(0.99) == rank


def test_equal_values_have_full_rank_and_one_has_rank_1() -> None:
    equal, one = Spectrum(4, 4, (2.0,) * 4), Spectrum(4, 4, (2.0, 0.0, 0.0))
    assert (equal.stable_rank, equal.effective_rank, equal.rank_at(1)) == (4, pytest.approx(4), 4)
    assert (one.stable_rank, one.effective_rank, one.rank_at(1)) == (1, 1, 1)


@pytest.mark.parametrize("energy", [0, 1.5, math.nan])
def test_a_share_is_between_0_and_1(energy: float) -> None:
    with pytest.raises(lora.ConfigError, match="must be the share of the squared norm"):
        Spectrum(2, 4, (1.0,)).rank_at(energy)


def test_what_cannot_be_computed_has_no_values() -> None:
    a = drawn(6, 7, 3, 0)
    broken = lora.LoRAUpdate(a.A * math.nan, a.B, 1)
    found = spectra(adapter(bad=broken, zero=lora.LoRAUpdate(a.A, 0 * a.B, 1), good=a))
    assert found["bad"].values is None
    assert all(math.isnan(x) for x in (found["bad"].norm, found["bad"].stable_rank, found["bad"].effective_rank))
    assert found["zero"].norm == found["zero"].stable_rank == found["zero"].effective_rank == 0.0
    assert found["good"].norm == pytest.approx(float(planted.apart(3, 0).norm()))


def test_the_values_of_a_transposed_convolution_of_0_1_are_those_of_its_matrix() -> None:
    layer = lora.ConvLoRA(torch.nn.ConvTranspose2d, 4, 6, 3, r=2, merge_weights=False).double()
    torch.nn.init.normal_(layer.lora_B)
    update = lora.extract(torch.nn.ModuleDict({"up": layer})).layers["up"]
    found = spectrum_of(update).values
    assert found is not None
    expected = torch.linalg.svdvals(update.delta().to(F64).transpose(0, 1).flatten(1))
    assert found[: len(expected)] == pytest.approx(tuple(expected.tolist()))
