"""Overlap of two adapters: the cosine of the dense matrices, shared inputs and outputs, and the total over layers."""

import math

import numpy as np
import planted
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import F64, SIZES, adapter, dense, drawn

import loralib as lora
from loralib.analysis import overlap, subspace_similarity, total_cosine
from sample_adapters import KINDS, updates


def cosine(D: np.ndarray, E: np.ndarray) -> float:
    return float((D * E).sum() / (np.linalg.norm(D) * np.linalg.norm(E)))


@given(SIZES)
def test_it_is_what_the_dense_matrices_have(sizes: tuple[int, ...]) -> None:
    k, n, r, s, seed = sizes
    a, b = drawn(k, n, r, seed), drawn(k, n, s, seed + 10)
    found = overlap(adapter(q=a), adapter(q=b))["q"]
    D, E = dense(a), dense(b)
    assert found.cosine == pytest.approx(cosine(D, E), abs=1e-10)
    assert (found.norm_a, found.norm_b) == (pytest.approx(np.linalg.norm(D)), pytest.approx(np.linalg.norm(E)))
    assert found.inner == pytest.approx((D * E).sum(), abs=1e-9 * found.norm_a * found.norm_b)
    for shared, of in ((found.shared_inputs, "right"), (found.shared_outputs, "left")):
        assert shared == pytest.approx(subspace_similarity(adapter(q=a), adapter(q=b), of)["q"].phi[-1, -1].item())  # type: ignore[arg-type]


@given(st.data(), st.sampled_from(sorted(set(KINDS) - {"merged", "experts", "shared"})))
def test_every_kind_of_layer(data: st.DataObject, kind: str) -> None:
    a, b = (data.draw(updates([kind], [F64], d=3, k=4)) for _ in range(2))
    assert overlap(adapter(q=a), adapter(q=b))["q"].cosine == pytest.approx(cosine(dense(a), dense(b)), abs=1e-9)


@pytest.mark.parametrize(("c", "expected"), [(1, 1.0), (3.0, 1.0), (-2.0, -1.0)])
def test_multiples_point_one_way_or_the_other(c: float, expected: float) -> None:
    one = adapter(q=drawn(6, 7, 3, 0))
    found = overlap(one, c * one)["q"]
    assert found.cosine == pytest.approx(expected)
    assert -1 <= found.cosine <= 1
    assert (found.shared_inputs, found.shared_outputs) == (pytest.approx(1), pytest.approx(1))
    assert found.norm_b == pytest.approx(abs(c) * found.norm_a)


def test_updates_that_share_inputs_only_do_not_point_one_way() -> None:
    P, V, S = planted.orthonormal(8, 4, 0), planted.orthonormal(9, 2, 1), planted.apart(2, 0)
    found = overlap(adapter(q=planted.update(P[:, :2], S, V)), adapter(q=planted.update(P[:, 2:], S, V)))["q"]
    assert abs(found.cosine) < 1e-12
    assert (found.shared_inputs, found.shared_outputs) == (pytest.approx(1), pytest.approx(0))


def test_the_total_is_that_of_all_layers_as_one_vector() -> None:
    one, two = (adapter(**{name: drawn(5, 6, r, seed + i) for i, name in enumerate("abc")}) for r, seed in ((2, 0), (3, 40)))
    D, E = (np.concatenate([dense(each.layers[name]).ravel() for name in "abc"]) for each in (one, two))
    assert total_cosine(overlap(one, two)) == pytest.approx(cosine(D, E), abs=1e-10)
    norm = math.hypot(*(found.norm_a for found in overlap(one, one + two).values()))
    assert norm == pytest.approx(np.linalg.norm(D))
    assert total_cosine({}) == 0.0


def test_of_slices_of_a_fused_projection_and_of_dora() -> None:
    q, v = drawn(4, 6, 2, 0), drawn(3, 6, 2, 5)
    fused = lora.FusedUpdate(torch.cat([q.A, v.A]), torch.cat([q.B, v.B]), 3, enable_lora=(True, False, True), widths=(4, 5, 3))
    assert [round(found.cosine, 6) for found in overlap(adapter(qkv=fused), adapter(qkv=fused)).values()] == [1.0, 1.0]
    dora = lora.LoRAUpdate(q.A, q.B, q.lora_alpha, magnitude=torch.ones(4))
    assert overlap(adapter(q=dora), adapter(q=q))["q"].cosine == pytest.approx(1)


def test_an_update_that_is_zero_overlaps_with_nothing() -> None:
    a = drawn(6, 7, 3, 0)
    found = overlap(adapter(q=a), adapter(q=lora.LoRAUpdate(a.A, 0 * a.B, 1)))
    assert (found["q"].cosine, found["q"].shared_inputs, found["q"].shared_outputs, found["q"].norm_b) == (0, 0, 0, 0)
    assert total_cosine(found) == 0.0


def test_what_cannot_be_compared_is_refused() -> None:
    a = drawn(6, 7, 3, 0)
    with pytest.raises(lora.TargetError, match="share no layer"):
        overlap(adapter(q=a), adapter(v=a))
    with pytest.raises(lora.AlgebraError, match=r"^q: its lora_B holds 18 numbers that are not finite"):
        overlap(adapter(q=a), adapter(q=lora.LoRAUpdate(a.A, a.B * math.nan, 1)))
    with pytest.raises(lora.AlgebraError, match="different shapes"):
        overlap(adapter(q=a), adapter(q=drawn(7, 6, 3, 0)))
    with pytest.raises(lora.ArgumentError, match="b: expected an Adapter"):
        overlap(adapter(q=a), "path")  # type: ignore[arg-type]
