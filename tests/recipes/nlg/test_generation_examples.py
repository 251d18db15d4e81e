"""Inputs keep all their texts, whatever order the rows come in, and no input is on both sides of a split."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.errors import DataError
from loralib.recipes import records
from loralib.recipes.nlg.examples import collected, example, grouped
from recipes.conftest import same
from recipes.nlg.conftest import pairs_of, texts_of

ROWS = st.lists(st.tuples(st.sampled_from("abcdef"), st.text(min_size=1, max_size=3)), min_size=1, max_size=20)


def by_input(rows: list[tuple[str, str]]) -> Any:
    return collected("x", grouped(example(context, [text]) for context, text in rows))


@given(rows=ROWS)
def test_grouping_keeps_every_text_once_with_its_input(rows: list[tuple[str, str]]) -> None:
    data = by_input(rows)
    assert sorted(pairs_of(data)) == sorted(rows)
    assert data["context"] == list(dict.fromkeys(context for context, _ in rows))
    for row in data:
        assert row["references"] == [text for context, text in rows if context == row["context"]]
    assert texts_of(data) == [text for _, text in pairs_of(data)]


@given(rows=ROWS)
def test_merging_what_is_merged_changes_nothing(rows: list[tuple[str, str]]) -> None:
    merged = grouped(example(context, [text]) for context, text in rows)
    assert grouped(merged) == merged


def test_equal_inputs_of_different_categories_stay_apart() -> None:
    rows = [example("a", ["1"], "seen"), example("a", ["2"], "unseen"), example("a", ["3"], "seen")]
    assert [row["references"] for row in grouped(rows)] == [["1", "3"], ["2"]]


@given(rows=ROWS, n=st.integers(1, 8), seed=st.integers(0, 5))
def test_a_sample_is_seeded_and_of_distinct_inputs_with_all_their_texts(rows: list[tuple[str, str]], n: int, seed: int) -> None:
    data = by_input(rows)
    sample = records.sample(data, n, seed)
    assert same(sample, records.sample(data, n, seed))
    assert len(set(sample["context"])) == len(sample) == min(n, len(data))
    assert all(row in data.to_list() for row in sample)
    assert records.sample(data, None, seed) is data


@given(rows=ROWS, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 5), merge=st.booleans())
def test_no_input_is_on_both_sides_of_a_split(rows: list[tuple[str, str]], fraction: float, seed: int, merge: bool) -> None:
    apart = [example(context, [text]) for context, text in rows]
    data = collected("x", grouped(apart) if merge else apart)
    inputs = set(data["context"])
    n = round(fraction * len(inputs))
    if not 0 < n < len(inputs):
        with pytest.raises(DataError, match=f"x \\({len(inputs)} different inputs\\): --eval-fraction"):
            records.split(data, fraction, seed, by="context")
        return
    train, held_out = records.split(data, fraction, seed, by="context")
    assert len(set(held_out["context"])) == n
    assert not set(train["context"]) & set(held_out["context"])
    assert sorted(pairs_of(train) + pairs_of(held_out)) == sorted(pairs_of(data))
    assert (records.source(train), records.source(held_out)) == ("x", "x (held out)")
    assert all(map(same, records.split(data, fraction, seed, by="context"), (train, held_out)))


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0.1, "--eval-fraction 0.1 holds nothing out; give --eval-data or a larger fraction"),
        (-1, "--eval-fraction -1 holds nothing out"),
        (0.9, "--eval-fraction 0.9 leaves nothing to train on; give --eval-data or a smaller fraction"),
    ],
)
def test_a_split_with_an_empty_part_is_refused(fraction: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        records.split(by_input([("a", "1"), ("b", "2")]), fraction, 0, by="context")


def test_data_without_rows_are_refused() -> None:
    with pytest.raises(DataError, match="x has no input with a text"):
        collected("x", [])
