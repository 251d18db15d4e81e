"""ROUGE-L (Lin 2004), in hundredths, as E2E's scripts compute it (by way of the COCO caption evaluation).

    P = max over references of LCS / words of the prediction,   R = max over references of LCS / words of the reference
    F = (1 + β²) P R / (R + β² P),  β = 1.2;   the score is the mean of F over the rows

LCS is the length of the longest common subsequence of words. The best P and the best R may be of different references. Other
implementations take the best F of one reference, or another β; their numbers differ.
"""

from collections.abc import Sequence
from statistics import fmean

from .rows import References, in_words
from .tokens import treebank_words

BETA = 1.2


def rouge_l(predictions: Sequence[str], references: References) -> float:
    """The score over words of the Penn Treebank in lower case, without punctuation.

    Raises `DataError` for rows that do not fit.

    >>> rouge_l(["The Mill is a pub."], [["The Mill is a pub, and cheap.", "A pub."]])
    100.0
    """
    return 100 * fmean(map(_f, *in_words(predictions, references, treebank_words)))


def _f(words: Sequence[str], targets: Sequence[Sequence[str]]) -> float:
    common = [longest_common_subsequence(words, target) for target in targets]
    if not any(common):
        return 0.0
    precision = max(common) / len(words)
    recall = max(length / len(target) for length, target in zip(common, targets, strict=True) if length)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, by bits: one addition a word instead of one comparison a pair (Hyyrö 2004).

    >>> longest_common_subsequence("abcde", "bxdae")
    3
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = row = (1 << len(a)) - 1
    for word in b:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & every
    return len(a) - row.bit_count()
