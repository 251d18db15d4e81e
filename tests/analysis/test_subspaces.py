"""Similarity of subspaces: φ as a dense numpy reference has it, its properties, and its value for random subspaces."""

import math

import numpy as np
import planted
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import F64, SIZES, adapter, dense, drawn

import loralib as lora
from loralib.analysis import SubspaceSimilarity, subspace_similarity
from sample_adapters import KINDS, tensor, updates

OF = st.sampled_from(["right", "left", "A"])


def vectors(update: lora.LoRAUpdate, of: str) -> np.ndarray:
    """The singular vectors as columns, by numpy."""
    if of == "A":
        return np.linalg.svd(update.A.flatten(1).double().numpy(), full_matrices=False)[2].T
    U, S, Vh = np.linalg.svd(dense(update), full_matrices=False)
    rank = int((1e-12 * S[0] < S).sum())
    return U[:, :rank] if of == "left" else Vh[:rank].T


def reference(a: lora.LoRAUpdate, b: lora.LoRAUpdate, of: str) -> np.ndarray:
    """φ(i, j), each by its definition."""
    U, V = vectors(a, of), vectors(b, of)
    phi = np.empty((U.shape[1], V.shape[1]))
    for i in range(1, U.shape[1] + 1):
        for j in range(1, V.shape[1] + 1):
            phi[i - 1, j - 1] = np.linalg.norm(U[:, :i].T @ V[:, :j]) ** 2 / min(i, j)
    return phi


def similarity(a: lora.LoRAUpdate, b: lora.LoRAUpdate, of: str = "right") -> SubspaceSimilarity:
    return subspace_similarity(adapter(q=a), adapter(q=b), of)["q"]  # type: ignore[arg-type]


# --- what it is -----------------------------------------------------------------------------------------------------


@given(SIZES, OF)
def test_it_is_what_a_dense_reference_computes(sizes: tuple[int, ...], of: str) -> None:
    k, n, r, s, seed = sizes
    a, b = drawn(k, n, r, seed), drawn(k, n, s, seed + 10)
    found = similarity(a, b, of)
    assert found.n == (k if of == "left" else n)
    assert found.phi.dtype == F64
    expected = reference(a, b, of)
    assert found.phi.shape == expected.shape
    assert np.abs(found.phi.numpy() - expected).max() <= 1e-10
    assert all(found.at(i + 1, j + 1) == found.phi[i, j] for i, j in np.ndindex(expected.shape))


@given(SIZES, OF)
def test_of_a_subspace_with_itself_it_is_1_and_never_outside_0_and_1(sizes: tuple[int, ...], of: str) -> None:
    k, n, r, s, seed = sizes
    a, b = drawn(k, n, r, seed), drawn(k, n, s, seed + 10)
    own, other = similarity(a, a, of).phi, similarity(a, b, of).phi
    assert (own - 1).abs().max() <= 1e-10  # the first i directions lie in the first j, or the other way round
    for phi in (own, other):
        assert phi.min() >= 0
        assert phi.max() <= 1


@given(SIZES)
def test_of_orthogonal_subspaces_it_is_0(sizes: tuple[int, ...]) -> None:
    k, n, r, s, seed = sizes
    r, s = min(r, k, n), min(s, k, n)
    Q, P = planted.orthonormal(n + s, r + s, seed), planted.orthonormal(k + s, r + s, seed + 1)
    a = planted.update(P[:, :r], planted.apart(r, seed), Q[:, :r])
    b = planted.update(P[:, r:], planted.apart(s, seed + 1), Q[:, r:])
    for of in ("right", "left", "A"):
        assert similarity(a, b, of).phi.abs().max() <= 1e-20


@given(SIZES, st.sampled_from(["right", "left"]))
def test_other_factors_of_the_same_update_change_nothing(sizes: tuple[int, ...], of: str) -> None:
    k, n, r, s, seed = sizes
    a, b = drawn(k, n, r, seed), drawn(k, n, s, seed + 10)
    B, A = planted.mixed(a.B, a.A, seed + 20)
    other = lora.LoRAUpdate(A * 2, B * 3, a.lora_alpha / 6)
    assert (similarity(a, b, of).phi - similarity(other, b, of).phi).abs().max() <= 1e-10


def test_the_chance_value_is_the_mean_of_random_subspaces() -> None:
    k, n, draws = 9, 12, 1000
    a, b = (
        adapter(**{f"d{i}": lora.LoRAUpdate(tensor((r, n), F64, seed + i), tensor((k, r), F64, i), 1) for i in range(draws)})
        for r, seed in ((3, 5000), (5, 7000))
    )
    found = subspace_similarity(a, b)
    phi = torch.stack([of_draw.phi for of_draw in found.values()])
    off = (phi.mean(0) - found["d0"].chance).abs() / (phi.std(0) / math.sqrt(draws))
    assert off.max() < 4  # standard errors
    assert found["d0"].chance[1, 4] == 5 / 12
    assert found["d0"].chance.shape == found["d0"].phi.shape


# --- what it was before training ------------------------------------------------------------------------------------


def test_two_ranks_of_one_seed_start_from_the_same_directions() -> None:
    A, zero = tensor((6, 20), F64, 0), torch.zeros(10, 6, dtype=F64)
    starting = [adapter(q=lora.LoRAUpdate(A[:r], zero[:, :r], 1)) for r in (2, 6)]
    trained = [adapter(q=lora.LoRAUpdate(A[:r] + 0.1 * tensor((r, 20), F64, r), tensor((10, r), F64, r), 1)) for r in (2, 6)]
    found = subspace_similarity(*trained, "A", starting=(starting[0], starting[1]))["q"]
    assert found.starting is not None
    assert found.starting.shape == found.phi.shape == (2, 6)
    assert found.starting[1, 5] == pytest.approx(1)
    assert found.phi[1, 5] < 0.999
    assert subspace_similarity(*trained, starting=(starting[0], starting[1]))["q"].starting is None  # ΔW was zero


def test_starting_values_with_fewer_directions_or_layers() -> None:
    a, b = drawn(6, 7, 3, 0), drawn(6, 7, 4, 5)
    start = adapter(q=drawn(6, 7, 2, 9))
    found = subspace_similarity(adapter(q=a, v=a), adapter(q=b, v=b), starting=(start, adapter(q=b)))
    before = found["q"].starting
    assert before is not None
    assert before.shape == (3, 4)
    assert before[2].isnan().all()
    assert np.abs(before[:2].numpy() - reference(start.layers["q"], b, "right")).max() <= 1e-10
    assert found["v"].starting is None


# --- every kind of layer --------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data(), st.sampled_from(sorted(set(KINDS) - {"merged", "experts", "shared"})))
def test_every_kind_of_layer_as_a_matrix(data: st.DataObject, kind: str) -> None:
    a, b = (data.draw(updates([kind], [F64], d=4, k=5, dora=False)) for _ in range(2))
    for of in ("right", "left"):
        found = similarity(a, b, of).phi
        U, V = vectors(a, of), vectors(b, of)
        assert found.shape == (U.shape[1], V.shape[1])
        expected = np.linalg.norm(U.T @ V) ** 2 / min(found.shape)  # of the whole subspaces, which any singular values give
        assert float(found[-1, -1]) == pytest.approx(expected, abs=1e-8)


def test_slices_of_a_fused_projection_stand_apart() -> None:
    q, v, w = drawn(4, 6, 2, 0), drawn(3, 6, 2, 5), drawn(4, 6, 2, 9)
    one = lora.FusedUpdate(torch.cat([q.A, v.A]), torch.cat([q.B, v.B]), 3, enable_lora=(True, False, True), widths=(4, 5, 3))
    two = lora.FusedUpdate(w.A, w.B, 3, enable_lora=(True, False, False), widths=(4, 5, 3))
    found = subspace_similarity(adapter(qkv=one), adapter(qkv=two), "left")
    assert list(found) == ["qkv[0]"]
    assert np.abs(found["qkv[0]"].phi.numpy() - reference(q, w, "left")).max() <= 1e-10
    assert list(subspace_similarity(adapter(qkv=one), adapter(qkv=one))) == ["qkv[0]", "qkv[2]"]


def test_a_fused_projection_and_a_plain_update_are_compared_as_one_matrix() -> None:
    one = lora.FusedUpdate(tensor((4, 6), F64, 0), tensor((7, 2), F64, 1), 3, enable_lora=(True, True), widths=(4, 3))
    found = subspace_similarity(adapter(qkv=one), adapter(qkv=drawn(7, 6, 3, 2)))
    assert {name: tuple(each.phi.shape) for name, each in found.items()} == {"qkv": (4, 3)}
    assert similarity(one, one.plain(), "left").at(4, 4) == pytest.approx(1)


def test_of_dora_the_low_rank_part_is_compared() -> None:
    a, b = drawn(6, 7, 3, 0), drawn(6, 7, 4, 5)
    dora = lora.LoRAUpdate(a.A, a.B, a.lora_alpha, magnitude=torch.ones(6))
    assert torch.equal(similarity(dora, b).phi, similarity(a, b).phi)


def test_weights_too_large_to_form_take_the_memory_of_their_factors() -> None:
    n = 100_000  # ΔW would be 80 GB
    a, b = (lora.LoRAUpdate(tensor((2, n), torch.float32, seed), tensor((n, 2), torch.float32, seed + 1), 4) for seed in (0, 5))
    assert similarity(a, b).at(2, 2) < 1e-3
    assert similarity(a, a).at(2, 2) == pytest.approx(1)


# --- what cannot be compared ----------------------------------------------------------------------------------------


def test_directions_are_counted_up_to_the_numerical_rank() -> None:
    whole, other = drawn(8, 9, 2, 0), drawn(8, 9, 4, 5)
    doubled = lora.LoRAUpdate(torch.cat([whole.A, whole.A]), torch.cat([whole.B, whole.B], 1), whole.lora_alpha)
    assert similarity(doubled, other).phi.shape == (2, 4)
    assert (similarity(doubled, other).phi - similarity(whole, other).phi).abs().max() <= 1e-10
    cancelled = lora.LoRAUpdate(torch.cat([whole.A, whole.A]), torch.cat([whole.B, -whole.B], 1), whole.lora_alpha)
    zero = lora.LoRAUpdate(whole.A, torch.zeros_like(whole.B), whole.lora_alpha)
    for nothing in (cancelled, zero):
        found = similarity(nothing, other)
        assert found.phi.shape == found.chance.shape == (0, 4)
        assert similarity(nothing, other, "A").phi.shape == (2, 4)
    with pytest.raises(lora.ConfigError, match=r"φ\(1, 4\): the two updates have 0 and 4 directions"):
        found.at(1, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    a = drawn(6, 7, 3, 0)
    broken = lora.LoRAUpdate(a.A, a.B * bad, a.lora_alpha)
    with pytest.raises(lora.AlgebraError, match=r"^q: its lora_B holds 18 numbers that are not finite"):
        similarity(a, broken)


def test_layers_without_values_or_numbers_are_refused_by_name() -> None:
    a = drawn(6, 7, 3, 0)
    with pytest.raises(lora.AlgebraError, match=r"^q: its factors are on the meta device"):
        similarity(a, lora.LoRAUpdate(a.A.to("meta"), a.B.to("meta"), 1))
    empty = lora.LoRAUpdate(torch.zeros(1, 0), torch.ones(6, 1), 1)
    with pytest.raises(lora.AlgebraError, match=r"^q: its lora_A holds no numbers"):
        similarity(empty, empty)


def test_factors_of_a_convolution_of_0_1_are_not_compared() -> None:
    one = lora.LegacyConvolutionUpdate(tensor((4, 4), F64, 0), tensor((6, 4), F64, 1), 1, weight_shape=(3, 2, 2, 2))
    assert similarity(one, one).at(1, 1) == pytest.approx(1)
    with pytest.raises(lora.AlgebraError, match=r"^q: loralib 0\.1's factors of a convolution do not factor its matrix"):
        similarity(one, one, "A")


def test_a_layer_of_two_shapes_is_refused() -> None:
    with pytest.raises(
        lora.AlgebraError, match=r"^q: the two updates are for weights of different shapes, \(6, 7\) and \(6, 8\)"
    ):
        similarity(drawn(6, 7, 2, 0), drawn(6, 8, 2, 0))


def test_adapters_without_a_layer_in_common_are_refused_with_the_nearest_names() -> None:
    update = drawn(6, 7, 2, 0)
    one = adapter(**{"model.0.q_proj": update, "model.1.q_proj": update})
    two = adapter(**{"model.0.q_porj": update})
    with pytest.raises(
        lora.TargetError, match=r"share no layer: .* none of the 2 of the first, such as model\.0\.q_proj\. Nearest"
    ) as caught:
        subspace_similarity(one, two)
    assert "model.0.q_porj (1 layer)" in str(caught.value)
    assert "Adapter.rename" in str(caught.value)
    with pytest.raises(lora.TargetError, match="The second adapter adapts no layer"):
        subspace_similarity(one, adapter())
    enabled = [(True, False), (False, True)]
    halves = [adapter(qkv=lora.FusedUpdate(update.A, update.B, 1, enable_lora=on, widths=(6, 6))) for on in enabled]
    with pytest.raises(lora.TargetError, match="share no slice of a layer: of qkv each adapts other slices"):
        subspace_similarity(*halves)


def test_other_arguments_are_refused() -> None:
    one = adapter(q=drawn(6, 7, 2, 0))
    with pytest.raises(lora.ConfigError, match=r"of=.rihgt.: must be one of 'A', 'right', 'left'"):
        subspace_similarity(one, one, "rihgt")  # type: ignore[arg-type]
    with pytest.raises(lora.ConfigError, match="starting: must be the two adapters"):
        subspace_similarity(one, one, starting=one)  # type: ignore[arg-type]
    with pytest.raises(lora.ArgumentError, match=r"starting\[1\]: expected an Adapter"):
        subspace_similarity(one, one, starting=(one, "path"))  # type: ignore[arg-type]
