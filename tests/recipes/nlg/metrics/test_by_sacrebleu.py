"""BLEU, chrF and TER agree with plain formulas and with sacrebleu."""

import math
from collections.abc import Sequence

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from loralib.recipes.nlg.metrics import by_sacrebleu, of_e2e
from loralib.recipes.nlg.metrics.files import read_predictions, read_references
from loralib.recipes.nlg.metrics.rows import References
from peers import data
from recipes.nlg.metric_rows import ROWS, Row, multi, parted


@given(ROWS)
def test_mteval_is_sacrebleu_but_for_case(rows: list[Row]) -> None:
    predictions, references = parted(rows)
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(3)]
    found = sacrebleu.corpus_bleu(predictions, streams, lowercase=True)
    assert by_sacrebleu.mteval(predictions, references) == pytest.approx(found.score)
    found = sacrebleu.corpus_bleu(predictions, streams)
    assert by_sacrebleu.cased_bleu(predictions, references) == pytest.approx(found.score)


def slow_multi_bleu(predictions: Sequence[str], references: References) -> float:
    """The formula; a blank reference is one of length 0."""
    hyp_len = ref_len = 0
    matched, total = [0] * 4, [0] * 4
    for text, row in zip(predictions, references, strict=True):
        words, targets = text.split(), [target.split() for target in row]
        hyp_len += len(words)
        ref_len += min((abs(len(target) - len(words)), len(target)) for target in targets)[1]
        for n in range(1, 5):
            for ngram, count in of_e2e.ngrams(words, n).items():
                total[n - 1] += count
                matched[n - 1] += min(count, max(of_e2e.ngrams(target, n)[ngram] for target in targets))
    if not all(matched):
        return 0.0
    penalty = min(1.0, math.exp(1 - ref_len / hyp_len))
    return 100 * penalty * math.prod(a / b for a, b in zip(matched, total, strict=True)) ** 0.25


@given(ROWS, st.booleans())
def test_multi_bleu_follows_the_formula(rows: list[Row], blank: bool) -> None:
    predictions, references = parted(rows)
    references = [[*row, ""] for row in references] if blank else references
    assert multi(predictions, references) == pytest.approx(slow_multi_bleu(predictions, references))


def test_short_rows_have_no_blank_reference() -> None:
    predictions, references = ["a pub in the city"] * 2, [["a pub in the city with food and drinks and a view"], ["a pub", "b"]]
    short = by_sacrebleu.multi_bleu(predictions, references)
    assert (short.sys_len, short.ref_len) == (10, 14)
    assert by_sacrebleu.multi_bleu(["a"], [["b c d e", ""]]).ref_len == 0


@given(ROWS)
def test_ter_and_chrf_are_sacrebleus(rows: list[Row]) -> None:
    predictions, references = parted(rows)
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(3)]
    assert by_sacrebleu.corpus_ter(predictions, references) == pytest.approx(
        sacrebleu.corpus_ter(predictions, streams).score / 100
    )
    assert by_sacrebleu.chrf(predictions, references) == pytest.approx(sacrebleu.corpus_chrf(predictions, streams).score)


@given(ROWS, st.booleans())
def test_a_rows_ter_is_the_least_and_a_blank_reference_counts_one(rows: list[Row], blank: bool) -> None:
    predictions, references = parted(rows)
    metric = sacrebleu.TER()
    least = [
        min(metric.sentence_score(text, [target]).score / 100 for target in row)
        for text, row in zip(predictions, references, strict=True)
    ]
    if blank:
        references, least = [[*row, ""] for row in references], [min(1.0, value) for value in least]
    assert by_sacrebleu.row_ters(predictions, references) == pytest.approx(least)


def test_a_rows_ter_is_the_least_on_real_text() -> None:
    """Leaving out references that cannot be the nearest changes nothing."""
    outputs = data("webnlg", "system_outputs")
    gold = [outputs / "references" / f"gold-new-cat-reference{i}.lex" for i in range(3)]
    predictions = read_predictions(outputs / "teams" / "UPF-TALN_new-cat.txt").column("prediction")[:150]
    references = [[text for text in row if text] for row in read_references(gold).column("references")[:150]]
    metric = sacrebleu.TER()
    for text, row, found in zip(predictions, references, by_sacrebleu.row_ters(predictions, references), strict=True):
        assert found == min(metric.sentence_score(text, [target]).score / 100 for target in row)


def test_the_line_of_the_perl_script_has_its_form() -> None:
    found = by_sacrebleu.multi_bleu(["the mill is a pub ."], [["the mill is a pub near a river ."]])
    assert by_sacrebleu.perl_line(found) == ("BLEU = 48.24, 100.0/80.0/75.0/66.7 (BP=0.607, ratio=0.667, hyp_len=6, ref_len=9)")


def test_case_counts_where_it_is_said_to() -> None:
    said, asked = ["THE MILL IS A CHEAP PUB"], [["the mill is a cheap pub"]]
    assert by_sacrebleu.mteval(said, asked) == pytest.approx(100)
    assert by_sacrebleu.cased_bleu(said, asked) == by_sacrebleu.chrf(said, asked) == 0
    assert by_sacrebleu.multi_bleu(said, asked).score == 0
    assert by_sacrebleu.multi_bleu(said, asked, lowercase=True).score == pytest.approx(100)
    assert by_sacrebleu.corpus_ter(said, asked) == 0
    assert by_sacrebleu.row_ters(said, asked) == [0]
