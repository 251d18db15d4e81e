"""Inputs keep all their texts, whatever order the rows come in, and no input is on both sides of a split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.errors import DataError
from loralib.recipes.nlg.examples import Example, GenerationData, grouped

ROWS = st.lists(st.tuples(st.sampled_from("abcdef"), st.text(min_size=1, max_size=3)), min_size=1, max_size=20)


@given(rows=ROWS)
def test_grouping_keeps_every_text_once_with_its_input(rows: list[tuple[str, str]]) -> None:
    data = grouped("x", rows)
    assert sorted(data.pairs()) == sorted(rows)
    assert data.contexts == list(dict.fromkeys(context for context, _ in rows))
    for example in data.examples:
        assert list(example.references) == [text for context, text in rows if context == example.context]
    assert data.texts == [text for _, text in data.pairs()]


@given(rows=ROWS)
def test_merging_what_is_merged_changes_nothing(rows: list[tuple[str, str]]) -> None:
    apart = GenerationData("x", tuple(Example(context, (text,)) for context, text in rows))
    assert apart.merged() == grouped("x", rows) == apart.merged().merged()


def test_equal_inputs_of_different_categories_stay_apart() -> None:
    data = GenerationData("x", (Example("a", ("1",), "seen"), Example("a", ("2",), "unseen"), Example("a", ("3",), "seen")))
    assert data.merged().references == [("1", "3"), ("2",)]


@given(rows=ROWS, n=st.integers(1, 8), seed=st.integers(0, 5))
def test_a_sample_is_seeded_and_of_distinct_inputs_with_all_their_texts(rows: list[tuple[str, str]], n: int, seed: int) -> None:
    data = grouped("x", rows)
    sample = data.sample(n, seed)
    assert sample == data.sample(n, seed)
    assert len(set(sample.contexts)) == len(sample) == min(n, len(data))
    assert set(sample.examples) <= set(data.examples)
    assert data.sample(None, seed) is data


@given(rows=ROWS, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 5), merge=st.booleans())
def test_no_input_is_on_both_sides_of_a_split(rows: list[tuple[str, str]], fraction: float, seed: int, merge: bool) -> None:
    data = GenerationData("x", tuple(Example(context, (text,)) for context, text in rows))
    data = data.merged() if merge else data
    inputs = set(data.contexts)
    n = round(fraction * len(inputs))
    if not 0 < n < len(inputs):
        with pytest.raises(DataError, match=f"x \\({len(inputs)} different inputs\\): --eval-fraction"):
            data.split(fraction, seed)
        return
    train, held_out = data.split(fraction, seed)
    assert len(set(held_out.contexts)) == n
    assert not set(train.contexts) & set(held_out.contexts)
    assert sorted(train.pairs() + held_out.pairs()) == sorted(data.pairs())
    assert (train.source, held_out.source) == ("x", "x (held out)")
    assert data.split(fraction, seed) == (train, held_out)


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
        grouped("x", [("a", "1"), ("b", "2")]).split(fraction, 0)


def test_data_without_rows_and_a_category_that_is_not_there_are_refused() -> None:
    with pytest.raises(DataError, match="x has no input with a text"):
        grouped("x", [])
    with pytest.raises(DataError, match="x has no inputs of the category 'new'; it has 'seen'"):
        GenerationData("x", (Example("a", ("1",), "seen"), Example("b", ("2",)))).part("new")
