"""Every metric: what a perfect prediction scores, that order does not matter, and what slower formulas and peers say."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from loralib.errors import DataError
from loralib.recipes.nlg.metrics import by_sacrebleu, of_e2e
from loralib.recipes.nlg.metrics.files import read_predictions, read_references
from loralib.recipes.nlg.metrics.rows import References
from loralib.recipes.nlg.metrics.tokens import mteval_words, tokenised, treebank_words
from peers import data

Metric = Callable[[Sequence[str], References], float]
Row = tuple[str, list[str]]

WORDS = st.sampled_from(["the", "mill", "is", "a", "pub", "near", "Aromi", "cheap", "£20", ".", ",", "1,000"])
TEXTS = st.lists(WORDS, min_size=1, max_size=9).map(" ".join)
ROWS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=6)


def multi(predictions: Sequence[str], references: References) -> float:
    return by_sacrebleu.multi_bleu(predictions, references).score


def mean_ter(predictions: Sequence[str], references: References) -> float:
    return math.fsum(by_sacrebleu.row_ters(predictions, references)) / len(predictions)


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


def parted(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    return [text for text, _ in rows], [list(targets) for _, targets in rows]


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


# --- BLEU -----------------------------------------------------------------------------------------------------------


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


# --- NIST, ROUGE-L, CIDEr -------------------------------------------------------------------------------------------


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


# --- TER and chrF ---------------------------------------------------------------------------------------------------


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


# --- words ----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=40))
def test_tokenising_twice_is_tokenising_once(text: str) -> None:
    for plain in (False, True):
        assert tokenised(tokenised(text, plain), plain) == tokenised(text, plain)


@given(st.text(max_size=60))
def test_no_text_breaks_a_tokeniser(text: str) -> None:
    for words in (mteval_words(text), treebank_words(text)):
        assert all(word and not word.isspace() for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It isn't (really) cheap.", "it is n't -lrb- really -rrb- cheap"),
        ("A 5-star café; £20-25, or 1,000 in all!", "a 5-star café # 20-25 or 1,000 in all"),
        ('She said: "Aromi\'s is best."', "she said aromi 's is best"),
        ("They'll take cards & cash...", "they 'll take cards & cash"),
        ("in the U.S. it can't", "in the u.s. it ca n't"),
    ],
)
def test_treebank_words(text: str, words: str) -> None:
    assert treebank_words(text) == words.split()
