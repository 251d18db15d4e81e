"""CIDEr (Vedantam et al. 2015) of a whole corpus, as E2E's scripts compute it: CIDEr-D of the COCO caption evaluation.

    CIDEr = 10 · mean over rows, their references and n ≤ 4 of  cos'(g_n(prediction), g_n(reference)) · exp(−d² / 2σ²)
    g_n = count · (log N − log max(1, number of rows whose references have the n-gram)), for every n-gram; N rows

cos' takes no more of an n-gram from the prediction than the reference has; d is the difference of their lengths; σ = 6. The
weights come from the references that are scored, so figures of different sets of rows cannot be compared, and a single row,
where nothing is rare, scores 0.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from .nist import ngrams
from .rows import References, in_words
from .tokens import treebank_words

ORDERS = range(1, 5)
SIGMA = 6.0

Vector = Mapping[tuple[str, ...], float]


def cider(predictions: Sequence[str], references: References) -> float:
    """The score over words of the Penn Treebank in lower case, without punctuation; 10 at most.

    Raises `DataError` for rows that do not fit.

    >>> said = ["The Mill is a cheap pub.", "Aromi serves good Italian food."]
    >>> round(cider(said, [[text] for text in said]), 6)
    10.0
    """
    hypotheses, targets = in_words(predictions, references, treebank_words)
    rarity = _Rarity(targets)
    return fmean(_row(words, row, rarity) for words, row in zip(hypotheses, targets, strict=True))


class _Rarity:
    """The vectors g_n, weighted by how few rows have an n-gram."""

    def __init__(self, targets: Sequence[Sequence[Sequence[str]]]):
        self.rows = len(targets)
        self.counts: Counter[tuple[str, ...]] = Counter()
        for row in targets:
            self.counts.update({ngram for words in row for n in ORDERS for ngram in ngrams(words, n)})

    def vector(self, words: Sequence[str], n: int) -> Vector:
        found = ngrams(words, n).items()
        return {ngram: count * math.log(self.rows / max(1, self.counts[ngram])) for ngram, count in found}


def _row(words: Sequence[str], targets: Sequence[Sequence[str]], rarity: _Rarity) -> float:
    vectors = [rarity.vector(words, n) for n in ORDERS]
    return 10 * fmean(
        math.exp(-((_size(words) - _size(target)) ** 2) / (2 * SIGMA**2)) * _clipped_cosine(vector, rarity.vector(target, n))
        for target in targets
        for n, vector in zip(ORDERS, vectors, strict=True)
    )


def _size(words: Sequence[str]) -> int:
    return max(0, len(words) - 1)  # COCO's scripts count the bigrams, which matters only to a text without words


def _clipped_cosine(predicted: Vector, target: Vector) -> float:
    norms = math.hypot(*predicted.values()) * math.hypot(*target.values())
    shared = sum(min(value, target[ngram]) * target[ngram] for ngram, value in predicted.items() if ngram in target)
    return shared / norms if norms else 0.0
