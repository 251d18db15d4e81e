"""Predictions and references are paired by their inputs, in whatever form and order these are written."""

import pytest

from loralib.errors import DataError
from loralib.recipes.nlg.metrics.pairing import in_order_of, looks_like_input, normal

OF = {"asked": "p.txt", "known": "r.txt"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("name[The Mill], eatType[pub]", "Type : pub | name : The Mill"),
        ("name[Aromi], priceRange[cheap]", "price : cheap | name : Aromi"),
        ("eatType[pub], name[The Mill]", "name[the mill],eatType[PUB]"),
        ("A Text  of its own", "a text of its OWN"),
        ("a : b : c | d : e : f", "d : e : f | a : b : c"),
    ],
)
def test_an_input_has_one_form(one: str, other: str) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"), [("name[The Mill]", "name[Aromi]"), ("name[x]", "type[x]"), ("a : b | c : d", "a : d | c : b")]
)
def test_different_inputs_stay_different(one: str, other: str) -> None:
    assert normal(one) != normal(other)


@pytest.mark.parametrize(("text", "found"), [("name[Aromi], area[riverside]", True), ("MR", False), ("[x]", False)])
def test_meaning_representations_are_known(text: str, found: bool) -> None:
    assert looks_like_input(text) is found


def test_each_input_is_found_by_its_number() -> None:
    assert in_order_of(["b", "c", "a"], ["a", "b", "c"], OF) == [1, 2, 0]
    assert in_order_of(["A ", "a"], ["a", "a"], OF) == [0, 1], "equal inputs in the same order"
    assert in_order_of([None, "x"], ["x", None], OF) == [1, 0]
    assert in_order_of([], [], OF) == []


@pytest.mark.parametrize(("asked", "known", "row"), [(["a", "x"], ["a", "b"], 2), (["b", "a", "a"], ["a", "a", "b"], 1)])
def test_what_is_not_the_same_is_told_with_its_row(asked: list[str], known: list[str], row: int) -> None:
    with pytest.raises(DataError, match=rf"p\.txt, row {row}, answers .* but the references are those of .*r\.txt.*--by-order"):
        in_order_of(asked, known, OF)
