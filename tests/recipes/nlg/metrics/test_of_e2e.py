"""NIST, ROUGE-L and CIDEr agree with plain formulas and with cases by hand."""

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.recipes.nlg.metrics import of_e2e
from loralib.recipes.nlg.metrics.rows import References
from loralib.recipes.nlg.metrics.tokens import treebank_words
from recipes.nlg.metric_rows import ROWS, Row, parted


def test_nist_of_a_case_by_hand() -> None:
    predictions, references = ["a b"], [["a b", "a c"]]  # counts: a 2, b 1, c 1 of 4 words; "a b" 1, "a c" 1
    assert of_e2e.nist(predictions, references) == pytest.approx((1 + 2) / 2 + 1)  # info: a 1, b 2; "a b" log2(2 / 1)
    half = math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(2) ** 2)
    assert of_e2e.nist(["a"], references) == pytest.approx(1 * half)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
def test_the_longest_common_subsequence_is_the_longest(a: list[str], b: list[str]) -> None:
    subsequences = [{c for n in range(len(x) + 1) for c in itertools.combinations(x, n)} for x in (a, b)]
    assert of_e2e.longest_common_subsequence(a, b) == max(map(len, subsequences[0] & subsequences[1]))


def test_rouge_l_takes_the_best_precision_and_the_best_recall_apart() -> None:
    row = ["a b c d", "a"]  # of "a b": precision 1 and recall 1/2 of the first, precision 1/2 and recall 1 of the second
    assert of_e2e.rouge_l(["a b"], [row]) == pytest.approx(100)
    precision, recall = 2 / 3, 1 / 2
    expected = 100 * (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert of_e2e.rouge_l(["a b x"], [["a b c d"]]) == pytest.approx(expected)


def slow_cider(predictions: Sequence[str], references: References) -> float:
    """The formula, over dense vectors of all n-grams."""
    hypotheses = [treebank_words(text) for text in predictions]
    targets = [[treebank_words(text) for text in row] for row in references]
    scores = []
    for words, row in zip(hypotheses, targets, strict=True):
        values = []
        for target in row:
            delta = max(0, len(words) - 1) - max(0, len(target) - 1)
            for n in range(1, 5):
                known = sorted({*of_e2e.ngrams(words, n), *of_e2e.ngrams(target, n)})
                having = [sum(any(g in of_e2e.ngrams(text, n) for text in other) for other in targets) for g in known]
                idf = [math.log(len(targets)) - math.log(max(1, count)) for count in having]
                h = [of_e2e.ngrams(words, n)[g] * w for g, w in zip(known, idf, strict=True)]
                r = [of_e2e.ngrams(target, n)[g] * w for g, w in zip(known, idf, strict=True)]
                norm = math.sqrt(sum(x * x for x in h)) * math.sqrt(sum(x * x for x in r))
                dot = sum(min(x, y) * y for x, y in zip(h, r, strict=True))
                values.append(dot / norm * math.exp(-(delta**2) / 72) if norm else 0.0)
        scores.append(10 * sum(values) / len(values))
    return sum(scores) / len(scores)


@given(ROWS)
def test_cider_follows_the_formula(rows: list[Row]) -> None:
    assert of_e2e.cider(*parted(rows)) == pytest.approx(slow_cider(*parted(rows)), abs=1e-9)


def test_ngrams_are_counted_as_they_occur() -> None:
    assert of_e2e.ngrams(["a", "b", "a", "b"], 2) == {("a", "b"): 2, ("b", "a"): 1}
    assert of_e2e.ngrams(["a"], 2) == {}
    assert of_e2e.ngrams([], 1) == {}


def test_cider_of_a_case_by_hand() -> None:
    """Each text has words of its own, so every n-gram weighs log 2; the second prediction has another text's words."""
    references = [["mill pub cheap near"], ["aromi inn good food"]]
    assert of_e2e.cider([row[0] for row in references], references) == pytest.approx(10)
    assert of_e2e.cider(["mill pub cheap near", "mill pub cheap near"], references) == pytest.approx(5)
    shorter = math.exp(-1 / 72) * (math.sqrt(3) / 2 + math.sqrt(2 / 3) + math.sqrt(1 / 2)) / 4
    assert of_e2e.cider(["mill pub cheap", ""], references) == pytest.approx(10 * shorter / 2)


def test_nist_counts_no_ngram_oftener_than_one_reference_has_it() -> None:
    once = of_e2e.nist(["a b"], [["a b", "c d e"]])
    twice = of_e2e.nist(["a a"], [["a b", "c d e"]])
    assert 0 < twice < once
