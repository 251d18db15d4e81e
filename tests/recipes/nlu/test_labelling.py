"""Labels become classes in a fixed order, or numbers, or are refused with one clear sentence."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.errors import DataError
from loralib.recipes.nlu import inputs
from recipes.conftest import labelled


def test_classes_are_named_in_order_and_numbers_by_value() -> None:
    assert inputs.label_names(labelled("x", ["a"] * 3, ["b", "a", "b"])) == ["a", "b"]
    assert inputs.label_names(labelled("x", ["a"] * 3, ["10", "9", "-1"])) == ["-1", "9", "10"]


@given(st.permutations(["1", "01", "²", "--5", "-5", "٣", "9" * 5000, "", "x"]))
def test_the_order_of_classes_is_one_and_no_label_breaks_it(labels: list[str]) -> None:
    names = inputs.label_names(labelled("x", [""] * len(labels), labels))
    assert names == ["-5", "01", "1", "", "--5", "9" * 5000, "x", "²", "٣"]


def test_labels_that_are_text_or_numbers_are_no_classes() -> None:
    def data(classes: int, rows: int) -> Any:
        return labelled("x", [""] * rows, [str(i % classes) for i in range(rows)])

    with pytest.raises(DataError, match=r"51 labels in 101 rows.*looks like text or a number: use --label-column or --problem"):
        inputs.label_names(data(51, 101))
    for classes, rows in [(51, 102), (50, 50)]:
        assert len(inputs.label_names(data(classes, rows))) == classes


def test_one_class_is_refused() -> None:
    data = labelled("x", ["a"] * 2, ["a", "a"])
    with pytest.raises(DataError, match="x: all 2 rows have the label 'a'"):
        inputs.label_names(data)


def test_a_label_that_training_did_not_have_is_refused() -> None:
    with pytest.raises(DataError, match="'c', which is none of 'a', 'b'"):
        inputs.targets(labelled("x", ["a"], ["c"]), ["a", "b"])
    with pytest.raises(DataError, match=r"'c', which is none of '0', .*'7' and 2 more"):
        inputs.targets(labelled("x", ["a"], ["c"]), [str(i) for i in range(10)])


@pytest.mark.parametrize("label", ["x", "", "nan", "inf"])
def test_a_label_that_is_no_number_is_refused_for_regression(label: str) -> None:
    with pytest.raises(DataError, match=f"x: the label '{label}' of the text 'b' is not a number"):
        inputs.targets(labelled("x", ["a", "b"], ["1.5", label]), None)


def test_targets_are_positions_of_classes_or_numbers() -> None:
    data = labelled("x", ["a", "b"], ["2", "1"])
    assert inputs.targets(data, ["1", "2"]) == [1, 0]
    assert inputs.targets(data, None) == [2.0, 1.0]
