"""The metrics agree with their definitions."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import assume, given
from hypothesis import strategies as st

from loralib.recipes.nlu import metrics

LABELS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


@given(LABELS)
def test_classification_follows_the_definitions(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = (np.array(column) for column in zip(*pairs, strict=True))
    tp, fp = ((predicted == 1) & (expected == 1)).sum(), ((predicted == 1) & (expected == 0)).sum()
    fn, tn = ((predicted == 0) & (expected == 1)).sum(), ((predicted == 0) & (expected == 0)).sum()
    root = np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    got = metrics.classification(predicted, expected, 2)
    assert got["accuracy"] == pytest.approx((tp + tn) / len(pairs))
    assert got["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0)
    assert got["matthews"] == pytest.approx((tp * tn - fp * fn) / root if root else 0)


MANY = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


@given(MANY)
def test_several_classes_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = (np.array(column) for column in zip(*pairs, strict=True))
    got = metrics.of_logits(np.eye(3)[predicted], expected.astype(np.float64))
    assert got["accuracy"] == sklearn.metrics.accuracy_score(expected, predicted)
    assert got["f1"] == pytest.approx(sklearn.metrics.f1_score(expected, predicted, average="macro", zero_division=0.0))
    if len({*predicted.tolist(), *expected.tolist()}) > 1:
        assert got["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(expected, predicted))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=3, max_size=30))
def test_correlations_agree_with_scipy_and_with_their_definitions(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = (np.array(column, dtype=np.float64) / 10 for column in zip(*pairs, strict=True))
    got = metrics.of_logits(predicted[:, None], expected)
    assume(np.ptp(predicted) > 0 and np.ptp(expected) > 0)
    assert got["pearson"] == pytest.approx(scipy.stats.pearsonr(predicted, expected)[0])
    assert got["spearman"] == pytest.approx(scipy.stats.spearmanr(predicted, expected)[0])
    assert got["pearson"] == pytest.approx(np.corrcoef(predicted, expected)[0, 1])
    ranks = (scipy.stats.rankdata(predicted), scipy.stats.rankdata(expected))  # ties share their mean rank
    assert got["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_known_cases() -> None:
    predicted, expected = np.array([1, 1, 1, 0, 0, 0, 0, 1]), np.array([1, 1, 0, 0, 0, 1, 0, 1])  # tp 3, fp 1, fn 1, tn 3
    got = metrics.classification(predicted, expected, 2)
    assert got == pytest.approx({"accuracy": 0.75, "f1": 0.75, "matthews": (3 * 3 - 1 * 1) / 16})
    falling = metrics.regression(np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 9.0]))
    assert falling == pytest.approx({"pearson": -8 / np.sqrt(2 * 38), "spearman": -1.0})


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=30, unique=True), st.floats(0.1, 5), st.floats(-3, 3))
def test_regression_is_one_for_a_rising_line_and_minus_one_for_a_falling(xs: list[float], slope: float, at: float) -> None:
    x = np.round(np.array(xs), 3)
    assume(len(set(x)) >= 3)
    assert metrics.regression(slope * x + at, x) == pytest.approx({"pearson": 1, "spearman": 1})
    assert metrics.regression(-slope * x + at, x) == pytest.approx({"pearson": -1, "spearman": -1})


def test_a_constant_prediction_correlates_with_nothing() -> None:
    for sides in [(np.ones(4), np.arange(4.0)), (np.arange(4.0), np.ones(4)), (np.ones(4), np.ones(4))]:
        assert metrics.regression(*sides) == {"pearson": 0.0, "spearman": 0.0}


def test_one_column_of_logits_is_regression_and_several_are_classification() -> None:
    assert "pearson" in metrics.of_logits(np.arange(6.0).reshape(6, 1), np.arange(6.0))
    assert metrics.of_logits(np.eye(3), np.arange(3.0))["accuracy"] == 1.0


def test_what_f1_means_depends_on_the_classes_of_the_model_alone() -> None:
    predicted, expected = np.array([0, 0, 1, 0]), np.array([0, 1, 1, 0])
    logits = np.eye(3)[predicted]
    assert metrics.of_logits(logits[:, :2], expected)["f1"] == pytest.approx(2 / 3)  # of class 1
    assert metrics.of_logits(logits, expected)["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)  # mean over classes 0 and 1
    assert type(metrics.of_logits(logits, expected)) is dict
