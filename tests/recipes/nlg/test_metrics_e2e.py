"""E2E's metrics give the published figures of TGen's outputs: BLEU 0.6593, NIST 8.6094, METEOR 0.4483, ROUGE-L 0.6850, CIDEr
2.2338."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from loralib.recipes.nlg.metrics import by_sacrebleu, of_e2e
from loralib.recipes.nlg.metrics.files import read_predictions, read_references
from loralib.recipes.nlg.metrics.rows import References
from loralib.recipes.nlg.metrics.tokens import treebank_words
from loralib.recipes.nlg.scoring import score
from peers import data, meteor, stanford_words

Metric = Callable[[Sequence[str], References], float]


@functools.cache
def tgen() -> tuple[list[str], list[tuple[str, ...]]]:
    predictions = read_predictions(data("e2e", "system_outputs", "tgen.tsv"))
    references = read_references([data("e2e", "testset_w_refs.csv")])
    assert predictions.column("context") == references.column("context")
    return predictions.column("prediction"), references.column("references")


@pytest.mark.parametrize(
    ("metric", "published", "tolerance"),
    [
        (by_sacrebleu.mteval, 65.93, 0.005),
        (of_e2e.nist, 8.6094, 0.00005),
        (of_e2e.rouge_l, 68.50, 0.005),
        (of_e2e.cider, 2.2338, 0.00005),
    ],
)
def test_tgen_has_its_published_score(metric: Metric, published: float, tolerance: float) -> None:
    assert metric(*tgen()) == pytest.approx(published, abs=tolerance)


@pytest.mark.slow
def test_tgen_has_its_published_meteor(tmp_path: Path) -> None:
    assert score("e2e", *tgen(), meteor_jar=meteor(tmp_path))["meteor"] == pytest.approx(44.83, abs=0.005)


def test_the_references_are_those_of_630_inputs() -> None:
    predictions, references = tgen()
    assert (len(predictions), len(references), sum(map(len, references))) == (630, 630, 4693)


def test_case_makes_the_difference_to_sacrebleus_default() -> None:
    predictions, references = tgen()
    assert by_sacrebleu.cased_bleu(predictions, references) == pytest.approx(62.13, abs=0.005)  # case counts


@pytest.mark.slow
def test_words_are_those_of_stanfords_tokeniser(tmp_path: Path) -> None:
    predictions, references = tgen()
    texts = [*predictions, *(text for row in references for text in row)]
    assert [treebank_words(text) for text in texts] == stanford_words(texts, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("in the city center., close", "in the city center. close"),
        ("a Range of 20£-25", "a range of 20 # -25"),
        ("for £20-£25 or £20-25.", "for # 20 # 25 or # 20-25"),
        ("20 -25 or 20 - 25", "20 -25 or 20 25"),
        ("hors d'oeuvre at five o'clock, I'd say", "hors d'oeuvre at five o'clock i 'd say"),
        ("near St. John's, Mr. Mill", "near st. john 's mr. mill"),
        ("it costs £20.The pub is here.Now", "it costs # 20 the pub is here.now"),
        ("rated 3/5 or 3 / 5 (high)", "rated 3/5 or 3 / 5 -lrb- high -rrb-"),
        ("you cannot, don\u2019t!!", "you can not do n't !!"),
    ],
)
def test_words_that_stanfords_tokeniser_cuts_so(text: str, words: str) -> None:
    assert treebank_words(text) == words.split()
