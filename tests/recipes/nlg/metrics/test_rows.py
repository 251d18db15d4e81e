"""Predictions and references row by row: what every metric checks, and the forms that programs take."""

import pytest

from loralib.errors import DataError
from loralib.recipes.nlg.metrics import rows


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "there are 1 predictions and 2 rows of references; give one an input"),
        ([], [], "there are no predictions"),
        (["a", "b"], [["a"], "b"], "the references of row 2 are one text, 'b'"),
        (["a", "b"], [["a"], ["", "\t"]], "row 2 has no reference"),
        (["a"], [[]], "row 1 has no reference"),
    ],
)
def test_rows_that_do_not_fit_are_told_by_number(predictions: list[str], references: rows.References, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows.check(predictions, references)
    with pytest.raises(DataError, match=message):
        rows.in_words(predictions, references, str.split)


def test_an_empty_prediction_is_one() -> None:
    rows.check(["", " "], [["a"], ["b", ""]])


def test_blank_references_are_none() -> None:
    assert rows.given(["a", "", " \n", "b "]) == ["a", "b "]
    assert rows.in_words(["a b"], [["c", "", "d e"]], str.split) == ([["a", "b"]], [[["c"], ["d", "e"]]])


def test_files_side_by_side_are_as_many_as_the_longest_row_has_texts() -> None:
    ragged = [["a"], ["b", "c", "d"], ["e", "f"]]
    assert rows.files(ragged) == [["a", "b", "e"], ["", "c", "f"], ["", "d", ""]]
    assert rows.files(ragged, repeat=True) == [["a", "b", "e"], ["a", "c", "f"], ["a", "d", "e"]]
    assert rows.files([]) == []
    assert rows.streams([["a", "", "x"], ["b"]]) == [["a", "b"], ["x", None]]
