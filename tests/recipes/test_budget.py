"""A budget of parameters: counted on the real layers, and met as nearly as whole ranks allow."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.recipes import budget
from loralib.recipes.options import TrainOptions
from loralib.recipes.studies import MATRICES


def options(model: str | Path, **values: object) -> TrainOptions:
    return TrainOptions.of({"model": str(model), "data": "d.tsv", **values})


@given(st.integers(1, 10**6), st.integers(1, 10**5))
def test_no_other_rank_is_nearer(wanted: int, each: int) -> None:
    r = budget.nearest_rank(wanted, each)
    assert r >= 1
    assert abs(r * each - wanted) <= min(abs(other * each - wanted) for other in (max(1, r - 1), r + 1))


def test_the_papers_ranks_for_its_budget() -> None:
    """Table 5: r = 8 on one matrix, 4 on two, 2 on four, all of one width."""
    found = budget.ranks_for(options("gpt2", problem="generation"), MATRICES[:7], 4)
    assert list(found.values()) == [8, 8, 8, 8, 4, 4, 2]


def test_each_set_is_counted_on_its_layers(encoder: Path) -> None:
    width, inner, blocks = 32, 48, 2
    attention, mlp = 2 * width, 2 * (width + inner)
    counts = budget.per_rank(options(encoder), MATRICES)
    assert counts["query"] == counts["output"] == blocks * attention
    assert counts["query,value"] == 2 * blocks * attention
    assert counts["mlp"] == blocks * mlp
    assert counts["all-linear"] == blocks * (4 * attention + mlp) + attention  # and the pooler
    fewer = options(encoder, exclude_modules="layer.1.attention.self.query", target_modules="all-linear")
    assert budget.per_rank(fewer, ["query"]) == {"query": attention}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), [("minilm", "classification"), ("smollm2", "generation")])
def test_models_that_come_as_packages_are_counted_without_their_weights(model: str, kind: str) -> None:
    found = budget.per_rank(options(model, problem=kind), ["query,value"])["query,value"]
    assert found == {"minilm": 6 * 4 * 384, "smollm2": 30 * (576 + 576 + 576 + 192)}[model]
