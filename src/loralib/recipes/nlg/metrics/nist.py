"""NIST (Doddington 2002) of a whole corpus, as NIST's mteval-v13a computes it and E2E's published figures have it.

    NIST = Σ_{n≤5} (Σ info of the n-grams that match / number of n-grams predicted) · penalty
    info(w_1 … w_n) = log2(count(w_1 … w_{n−1}) / count(w_1 … w_n)) over all references; count() is that of all words
    penalty = exp(β log² min(1, hyp_len / ref_len)), β such that it is 0.5 where predictions have two thirds of the length

An n-gram matches at most as often as it occurs in one reference of the row. ref_len is the mean length of *all* references
times the number of rows; the mean per row, summed, is another number (8.5923 instead of 8.6094 for TGen's outputs on E2E). nltk
takes the match of the best single reference instead, n by n, and so has another number still (7.1314).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from .rows import References, Words, in_words
from .tokens import mteval_words

ORDERS = range(1, 6)


def nist(predictions: Sequence[str], references: References) -> float:
    """The score, over words of mteval-v13a in lower case; 0 when nothing matches. Raises `DataError` for rows that do not fit.

    >>> round(nist(["the mill is a pub ."], [["the mill is a cheap pub .", "a pub is the mill ."]]), 3)
    3.65
    """
    hypotheses, targets = in_words(predictions, references, mteval_words)
    info = _information(targets)
    gain = sum(_gain(hypotheses, targets, n, info) for n in ORDERS)
    return gain * _penalty(sum(map(len, hypotheses)), _mean_length(targets) * len(targets))


def ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """How often each run of `n` words occurs.

    >>> ngrams(["a", "b", "a", "b"], 2)
    Counter({('a', 'b'): 2, ('b', 'a'): 1})
    """
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _information(targets: Sequence[Sequence[Words]]) -> dict[tuple[str, ...], float]:
    counts: Counter[tuple[str, ...]] = Counter()
    for words in (words for row in targets for words in row):
        counts[()] += len(words)
        for n in ORDERS:
            counts.update(ngrams(words, n))
    return {ngram: math.log2(counts[ngram[:-1]] / count) for ngram, count in counts.items() if ngram}


def _gain(
    hypotheses: Sequence[Words], targets: Sequence[Sequence[Words]], n: int, info: Mapping[tuple[str, ...], float]
) -> float:
    gained, predicted = 0.0, 0
    for words, row in zip(hypotheses, targets, strict=True):
        found, allowed = ngrams(words, n), Counter[tuple[str, ...]]()
        for target in row:
            allowed |= ngrams(target, n)
        gained += sum(info[ngram] * count for ngram, count in (found & allowed).items())
        predicted += found.total()
    return gained / predicted if predicted else 0.0


def _mean_length(targets: Sequence[Sequence[Words]]) -> float:
    lengths = [len(words) for row in targets for words in row]
    return sum(lengths) / len(lengths)


def _penalty(hyp_len: float, ref_len: float) -> float:
    if not hyp_len:
        return 0.0
    beta = math.log(0.5) / math.log(1.5) ** 2
    return math.exp(beta * math.log(min(1.0, hyp_len / ref_len)) ** 2)
