"""Combining adapters: what comes out is the sum of the products, whatever the factors are."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import loralib as lora
from models import same_bits
from peers import library
from sample_adapters import ALL, updates

WEIGHTS = st.sampled_from([1, -1, 0.5, -0.3, 2.5, 0])
WIDE = (torch.float32, torch.float64)


def of(*layers: lora.LoRAUpdate, **rest) -> lora.Adapter:
    named = {f"layer{i}": update for i, update in enumerate(layers)}
    return lora.Adapter(lora.LoRAConfig(), named, **rest)


def dense(update: lora.LoRAUpdate) -> Tensor:
    return replace(update, A=update.A.double(), B=update.B.double()).delta()


def near(found: Tensor, expected: Tensor, scale: float, tolerance: float = 1e-6) -> bool:
    """Whether two updates agree to `tolerance` of the size of what was added up."""
    return bool((found.double() - expected).norm() <= tolerance * max(scale, 1e-30))


@st.composite
def several(draw, kinds=ALL, dtypes=WIDE, mixed_dtypes=True):
    """Adapters of one layer of the same kind and shape, of any ranks and scalings, with weights."""
    kind, d, k = draw(st.sampled_from(list(kinds))), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    count = draw(st.integers(1, 4))
    chosen = [draw(updates([kind], dtypes, d=d, k=k)) for _ in range(count)]
    return [of(update) for update in chosen], [draw(WEIGHTS) for _ in range(count)]


# --- exact and svd --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@given(data=st.data())
def test_the_exact_sum_is_the_sum_of_the_products(kind, data):
    adapters, weights = data.draw(several([kind], (*WIDE, torch.bfloat16, torch.float16)))
    found = lora.combine(adapters, weights)
    terms = [w * dense(a.layers["layer0"]) for a, w in zip(adapters, weights, strict=True)]
    assert near(dense(found.layers["layer0"]), sum(terms), sum(float(t.norm()) for t in terms))
    assert type(found.layers["layer0"]) is type(adapters[0].layers["layer0"])


@pytest.mark.parametrize("kind", ALL)
@given(data=st.data())
def test_svd_at_full_rank_is_the_sum_of_the_products(kind, data):
    adapters, weights = data.draw(several([kind]))
    ranks = sum(adapter.layers["layer0"].r for adapter in adapters)
    found = lora.combine(adapters, weights, "svd", r=ranks)
    terms = [w * dense(a.layers["layer0"]) for a, w in zip(adapters, weights, strict=True)]
    assert near(dense(found.layers["layer0"]), sum(terms), sum(float(t.norm()) for t in terms))
    compact = lora.combine(adapters, weights, "svd", energy=1)
    assert near(dense(compact.layers["layer0"]), sum(terms), sum(float(t.norm()) for t in terms), 1e-5)


@settings(max_examples=40)
@given(several(["linear", "conv", "embedding", "bilinear"]), st.integers(1, 3))
def test_svd_is_the_best_approximation_of_its_rank(drawn, r):
    adapters, weights = drawn
    found = lora.combine(adapters, weights, "svd", r=r)
    exact = dense(lora.combine(adapters, weights).layers["layer0"])
    update = found.layers["layer0"]
    exact = exact.t() if isinstance(update, lora.EmbeddingUpdate) else exact
    S = torch.linalg.svdvals(exact.flatten(1))
    error = (dense(update).t() if isinstance(update, lora.EmbeddingUpdate) else dense(update)).flatten(1) - exact.flatten(1)
    assert update.r <= max(r, 1)
    assert float(error.norm()) <= float(S[r:].norm()) + 1e-5 * float(S[0])


def test_svd_brings_the_sum_to_the_largest_of_the_ranks_by_default():
    a, b = (of(lora.LoRAUpdate(torch.randn(r, 9), torch.randn(8, r), 4)) for r in (2, 3))
    assert lora.combine([a, b], method="svd").layers["layer0"].r == 3
    assert lora.combine([a, b]).layers["layer0"].r == 5


def test_energy_is_kept_and_one_rank_less_would_not_keep_it():
    a, b = (of(lora.LoRAUpdate(torch.randn(4, 9), torch.randn(8, 4), 4)) for _ in range(2))
    exact = dense(lora.combine([a, b]).layers["layer0"])
    S = torch.linalg.svdvals(exact).square()
    r = lora.combine([a, b], method="svd", energy=0.9).layers["layer0"].r
    assert S[:r].sum() >= 0.9 * S.sum() > S[: r - 1].sum()
    assert lora.combine([a, b], method="svd", energy=0.9, r=2).layers["layer0"].r == 2


def test_a_layer_that_only_one_adapter_has_is_that_part_of_the_sum():
    x, y = (lora.LoRAUpdate(torch.randn(2, 3), torch.randn(4, 2), 4) for _ in range(2))
    found = lora.combine([of(x), of(x, y)], [1, -2])
    assert torch.allclose(found.delta("layer0"), -x.delta(), atol=1e-6)
    assert torch.equal(found.delta("layer1"), -2 * y.delta())


def test_factors_of_low_precision_stay_so_where_nothing_is_rounded():
    low = lora.LoRAUpdate(torch.randn(2, 3).bfloat16(), torch.randn(4, 2).bfloat16(), 4)
    assert lora.combine([of(low), of(low)], [1, -1]).layers["layer0"].A.dtype == torch.bfloat16
    assert lora.combine([of(low), of(low)], [1, 0.5]).layers["layer0"].A.dtype == torch.bfloat16
    assert lora.combine([of(low), of(low)], [1, 0.3]).layers["layer0"].A.dtype == torch.float32


# --- one adapter, and kinds that no sum can have ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@given(data=st.data())
def test_one_adapter_with_weight_1_comes_back_as_it_is(kind, data):
    adapter = of(data.draw(updates([kind])))
    assert lora.combine([adapter]) is adapter
    assert lora.combine([adapter], [1], "svd") is adapter
    for method in ("ties", "dare", "magnitude", "dare_ties"):
        assert lora.combine([adapter], [1], method, density=1) is adapter


@given(updates(["linear", "conv", "embedding"], dora=True))
def test_dora_comes_back_as_it_is_or_is_refused_by_name(update):
    adapter = of(update)
    assert lora.combine([adapter]) is adapter
    assert lora.combine([adapter], method="svd") is adapter
    other = of(replace(update, magnitude=None))
    for adapters, weights, options in (
        ([adapter], [0.5], {}),
        ([adapter, adapter], None, {}),
        ([adapter, other], None, {"method": "svd"}),
        ([adapter], None, {"method": "ties", "density": 0.5}),
        ([adapter, other], None, {"method": "dare", "density": 1}),
    ):
        with pytest.raises(lora.AlgebraError, match=r"layer0.*DoRA"):
            lora.combine(adapters, weights, **options)


def test_dora_of_a_layer_that_no_other_adapter_has_stays():
    dora = lora.LoRAUpdate(torch.randn(2, 3), torch.randn(4, 2), 4, magnitude=torch.rand(4))
    plain = replace(dora, magnitude=None)
    found = lora.combine([of(plain, dora), of(plain)])
    assert found.layers["layer1"] is dora


def test_slices_that_differ_are_added_in_their_plain_form():
    fields = [((True, False, True), (2, 2, 2)), ((False, True, True), (2, 2, 2))]
    a, b = (of(lora.FusedUpdate(torch.randn(4, 3), torch.randn(4, 2), 4, False, *field)) for field in fields)
    found = lora.combine([a, b], [1, 0.5])
    assert type(found.layers["layer0"]) is lora.LoRAUpdate
    assert torch.allclose(found.delta("layer0"), a.delta("layer0") + 0.5 * b.delta("layer0"), atol=1e-6)


def test_updates_of_different_layers_are_refused_by_name():
    a = of(lora.LoRAUpdate(torch.randn(2, 3), torch.randn(4, 2), 4))
    for b in (
        of(lora.LoRAUpdate(torch.randn(2, 5), torch.randn(4, 2), 4)),
        of(lora.EmbeddingUpdate(torch.randn(2, 3), torch.randn(4, 2), 4)),
    ):
        for options in ({}, {"method": "ties", "density": 0.5}):
            with pytest.raises(lora.AlgebraError, match="layer0"):
                lora.combine([a, b], **options)


# --- pruning --------------------------------------------------------------------------------------------------------


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The largest entries, by sorting."""
    order = delta.abs().flatten().argsort(descending=True)[: int(density * delta.numel())]
    kept = torch.zeros_like(delta).flatten()
    kept[order] = delta.flatten()[order]
    return kept.view_as(delta)


def elected(deltas: list[Tensor], by: str) -> Tensor:
    """The disjoint mean, entry by entry, as the paper describes it."""
    out = torch.zeros_like(deltas[0]).flatten()
    for i in range(out.numel()):
        values = [float(delta.flatten()[i]) for delta in deltas]
        votes = values if by == "total" else [(v > 0) - (v < 0) for v in values]
        sign = 1 if sum(votes) >= 0 else -1
        agreeing = [v for v in values if v * sign > 0]
        out[i] = sum(agreeing) / len(agreeing) if agreeing else 0
    return out.view_as(deltas[0])


@settings(max_examples=60)
@given(
    several(["linear", "conv", "embedding", "bilinear", "projection", "grouped"]),
    st.sampled_from([0.2, 0.5, 1.0]),
    st.sampled_from(["total", "frequency"]),
)
def test_ties_and_magnitude_agree_with_a_plain_dense_reference(drawn, density, by):
    adapters, weights = drawn
    deltas = [dense(adapter.layers["layer0"]) for adapter in adapters]
    scale = sum(float(delta.norm()) for delta in deltas) * 3
    weighted = [w * trimmed(delta, density) for w, delta in zip(weights, deltas, strict=True)]
    for method, expected in (("magnitude", sum(weighted)), ("ties", elected(weighted, by))):
        found = lora.combine(adapters, weights, method, density=density, r=99, majority_sign=by).layers["layer0"]
        assert near(dense(found), expected, scale)


@settings(max_examples=30)
@given(several(["linear"]), st.sampled_from([0.3, 0.6]), st.sampled_from(["total", "frequency"]))
def test_ties_agrees_with_pefts_dense_arithmetic(drawn, density, by):
    ties = library("peft.utils.merge_utils").ties
    adapters, weights = drawn[0], [0.5] * len(drawn[0])  # PEFT elects signs before it weighs
    deltas = [dense(adapter.layers["layer0"]) for adapter in adapters]
    expected = ties(deltas, torch.tensor(weights, dtype=torch.float64), density, by)
    found = lora.combine(adapters, weights, "ties", density=density, r=99, majority_sign=by).layers["layer0"]
    assert near(dense(found), expected, sum(float(delta.norm()) for delta in deltas) * 3)


@settings(max_examples=30)
@given(several(["linear", "conv"]), st.integers(0, 3))
def test_dare_keeps_a_random_share_and_makes_up_for_the_rest(drawn, seed):
    adapters, weights = drawn
    found = lora.combine(adapters, weights, "dare", density=0.5, seed=seed, r=99)
    again = lora.combine(adapters, weights, "dare", density=0.5, seed=seed, r=99)
    assert again == found
    single = [lora.combine([a], [w], "dare", density=0.5, seed=seed, r=99) for a, w in zip(adapters[:1], weights, strict=False)]
    exact = dense(adapters[0].layers["layer0"]) * weights[0] / 0.5
    kept = dense(single[0].layers["layer0"])
    off = ((kept - exact).abs() > 1e-4 * exact.abs().max()) & (kept.abs() > 1e-4 * exact.abs().max())
    assert not off.any(), "an entry is zero, or what it was over the density"


def test_dare_is_right_on_average_and_another_seed_keeps_others():
    update = lora.LoRAUpdate(torch.randn(2, 40), torch.randn(30, 2), 4)
    drawn = [dense(lora.combine([of(update)], [2], "dare", density=0.5, seed=s, r=30).layers["layer0"]) for s in range(40)]
    zeros = (drawn[0].abs() < 1e-6).double().mean()
    assert 0.4 < float(zeros) < 0.6
    assert not torch.allclose(drawn[0], drawn[1])
    expected = 2 * dense(update)
    assert (torch.stack(drawn).mean(0) - expected).norm() < 0.4 * expected.norm()


def test_a_name_may_have_braces():
    adapter = of(lora.LoRAUpdate(torch.randn(2, 6), torch.randn(5, 2), 4)).rename({"": "a{0}.{b}"})
    assert list(lora.combine([adapter], method="dare", density=0.5).layers) == ["a{0}.{b}.layer0"]


def test_dares_choice_depends_on_no_other_layer():
    x, y = (lora.LoRAUpdate(torch.randn(2, 6), torch.randn(5, 2), 4) for _ in range(2))
    one = lora.combine([of(x)], [1], "dare", density=0.5)
    two = lora.combine([of(x, y)], [1], "dare", density=0.5)
    assert one.layers["layer0"] == two.layers["layer0"]


@pytest.mark.parametrize("method", ["magnitude", "ties", "dare", "dare_ties"])
def test_slices_stay_slices_when_they_are_pruned(method):
    fields = ((True, False, True), (3, 2, 4))
    a, b = (of(lora.FusedUpdate(torch.randn(4, 5), torch.randn(7, 2), 4, False, *fields)) for _ in range(2))
    found = lora.combine([a, b], method=method, density=0.4).layers["layer0"]
    assert isinstance(found, lora.FusedUpdate)
    assert not found.delta()[3:5].any()
    assert found.r == 4
    assert lora.combine([a, b], method=method, density=0.4, r=1).layers["layer0"].r == 1


# --- what was trained in full ---------------------------------------------------------------------------------------

X = lora.LoRAUpdate(torch.ones(1, 3), torch.ones(2, 1), 1)
ROWS = {"e.weight": lora.TokenRows((1,), torch.ones(1, 2))}


def with_head(value: float, **rest) -> lora.Adapter:
    return of(X, tensors={"head.weight": torch.full((2,), value)}, **rest)


def test_tensors_that_agree_stay_and_others_are_refused_by_name():
    same = lora.combine([with_head(1.0, rows=ROWS), with_head(1.0)])
    assert same_bits(same.tensors["head.weight"], torch.ones(2))
    assert same.rows == ROWS
    with pytest.raises(lora.AlgebraError, match=r"'head.weight'.*tensors="):
        lora.combine([with_head(1.0), with_head(2.0)])
    for method in ("svd", "ties"):
        with pytest.raises(lora.AlgebraError, match=r"'head.weight'"):
            lora.combine([with_head(1.0), with_head(2.0)], method=method, density=0.5 if method == "ties" else None)


def test_tensors_by_choice():
    pair, weights = [with_head(1.0), with_head(3.0)], [0.25, 0.75]
    assert float(lora.combine(pair, weights, tensors="first").tensors["head.weight"][0]) == 1
    assert float(lora.combine(pair, weights, tensors="average").tensors["head.weight"][0]) == 2.5
    bare = lora.combine(
        [replace(a, config=replace(a.config, modules_to_save=("head",))) for a in pair], weights, tensors="drop"
    )
    assert bare.tensors == {}
    assert bare.config.modules_to_save == ()
    with pytest.raises(lora.AlgebraError, match=r"add up to 1\.75, not to 1"):
        lora.combine(pair, [1, 0.75], tensors="average")


def test_rows_of_tokens_by_choice():
    rows = [{"e.weight": lora.TokenRows((1,), torch.full((1, 2), v))} for v in (1.0, 3.0)]
    pair = [of(X, rows=held) for held in rows]
    assert lora.combine(pair, [0.5, 0.5], tensors="average").rows["e.weight"].values.tolist() == [[2, 2]]
    assert lora.combine(pair, tensors="first").rows == rows[0]
    other = of(X, rows={"e.weight": lora.TokenRows((2,), torch.ones(1, 2))})
    with pytest.raises(lora.AlgebraError, match="different rows"):
        lora.combine([pair[0], other], [0.5, 0.5], tensors="average")


def test_metadata_in_which_adapters_differ_is_not_carried_over():
    a, b = of(X, metadata={"task_type": "A", "base": "m"}), of(X, metadata={"task_type": "B", "base": "m"})
    assert lora.combine([a, b]).metadata == {"base": "m"}


# --- words that are off ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapters", "options", "telling"),
    [
        ([], {}, "one at least"),
        ([of(X)], {"weights": [1, 2]}, "2 weights for 1 adapters"),
        ([of(X)], {"weights": [float("nan")]}, "finite"),
        ([of(X)], {"weights": [True]}, "finite"),
        ([of(X)], {"method": "mean"}, "exact, svd"),
        ([of(X)], {"r": 2}, "choose method='svd'"),
        ([of(X)], {"method": "svd", "r": 0}, "r=0"),
        ([of(X)], {"method": "svd", "energy": 1.5}, "energy=1.5"),
        ([of(X)], {"method": "ties"}, "needs density"),
        ([of(X)], {"method": "dare", "density": 0}, "density"),
        ([of(X)], {"method": "svd", "density": 0.5}, "prunes nothing"),
        ([of(X)], {"majority_sign": "most"}, "total, frequency"),
        ([of(X)], {"tensors": "sum"}, "same, first"),
    ],
)
def test_arguments_that_cannot_be_are_refused(adapters, options, telling):
    with pytest.raises(lora.ConfigError, match=telling):
        lora.combine(adapters, **options)
