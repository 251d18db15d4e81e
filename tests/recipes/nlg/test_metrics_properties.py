"""Every metric: what a perfect prediction scores, that order does not matter, and what slower formulas and peers say."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given

from loralib.errors import DataError
from loralib.recipes.nlg.metrics import by_sacrebleu, of_e2e
from loralib.recipes.nlg.metrics.rows import References
from recipes.nlg.metric_rows import ROWS, Row, mean_ter, multi, parted

Metric = Callable[[Sequence[str], References], float]


METRICS: dict[str, Metric] = {
    "mteval": by_sacrebleu.mteval,
    "multi_bleu": multi,
    "nist": of_e2e.nist,
    "rouge_l": of_e2e.rouge_l,
    "cider": of_e2e.cider,
    "chrf": by_sacrebleu.chrf,
    "ter": by_sacrebleu.corpus_ter,
    "row_ters": mean_ter,
}
SHARES = {"mteval": 100, "multi_bleu": 100, "rouge_l": 100, "chrf": 100}
each = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


@pytest.mark.parametrize("name", SHARES)
def test_a_perfect_prediction_scores_all(name: str) -> None:
    said = ["The Mill is a cheap pub near Aromi.", "Aromi serves good Italian food in the city centre."]
    assert METRICS[name](said, [["Another text.", text] for text in said]) == pytest.approx(SHARES[name])


@given(ROWS)
def test_a_perfect_prediction_is_as_good_as_any(rows: list[Row]) -> None:
    predictions, references = parted(rows)
    firsts = [row[0] for row in references]
    single = [[text] for text in firsts]
    assert by_sacrebleu.corpus_ter(firsts, single) == mean_ter(firsts, single) == 0
    for metric in (multi, of_e2e.rouge_l, of_e2e.cider, by_sacrebleu.chrf):
        assert metric(firsts, single) >= metric(predictions, single) - 1e-9


@each
@given(rows=ROWS)
def test_the_order_of_rows_and_of_references_does_not_matter(metric: Metric, rows: list[Row]) -> None:
    value = metric(*parted(rows))
    assert metric(*parted(rows[::-1])) == pytest.approx(value)
    if metric is by_sacrebleu.chrf:  # sacrebleu takes the first of references that are equally good, whose length then counts
        return
    turned = [(text, targets[::-1]) for text, targets in rows]
    assert metric(*parted(turned)) == pytest.approx(value)
    assert metric(*parted(turned[::-1])) == pytest.approx(value)


@each
def test_saying_nothing_scores_nothing(metric: Metric) -> None:
    worst = 1.0 if metric in (by_sacrebleu.corpus_ter, mean_ter) else 0.0
    assert metric(["", ""], [["The Mill is a pub."], ["A pub.", "Another pub."]]) == worst
    assert metric([""], [["The Mill is a pub."]]) == worst


@each
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a", "b"], [["a"]], "there are 2 predictions and 1 rows of references"),
        ([], [], "there are no predictions"),
        (["a"], [["", " "]], "row 1 has no reference"),
        (["a"], ["a"], "the references of row 1 are one text"),
    ],
)
def test_rows_that_do_not_fit_are_refused(metric: Metric, predictions: list[str], references: References, message: str) -> None:
    with pytest.raises(DataError, match=message):
        metric(predictions, references)
