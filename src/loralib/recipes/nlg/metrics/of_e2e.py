"""NIST, ROUGE-L and CIDEr of a whole corpus, as E2E's scripts compute them and its published figures have them.

    NIST = Σ_{n≤5} (Σ info of the n-grams that match / number of n-grams predicted) · penalty         (Doddington 2002)
    info(w_1 … w_n) = log2(count(w_1 … w_{n−1}) / count(w_1 … w_n)) over all references; count() is that of all words
    penalty = exp(β log² min(1, hyp_len / ref_len)), β such that it is 0.5 where predictions have two thirds of the length

An n-gram matches at most as often as it occurs in one reference of the row. ref_len is the mean length of *all* references
times the number of rows; the mean per row, summed, is another number (8.5923 instead of 8.6094 for TGen's outputs on E2E). nltk
takes the match of the best single reference instead, n by n, and so has another number still (7.1314).

    ROUGE-L = mean over rows of (1 + β²) P R / (R + β² P),  β = 1.2, in hundredths                    (Lin 2004)
    P = max over references of LCS / words of the prediction,   R = max over references of LCS / words of the reference

LCS is the length of the longest common subsequence of words. The best P and the best R may be of different references. Other
implementations take the best F of one reference, or another β; their numbers differ.

    CIDEr = 10 · mean over rows, their references and n ≤ 4 of  cos'(g_n(prediction), g_n(reference)) · exp(−d² / 2σ²)
    g_n = count · (log N − log max(1, number of rows whose references have the n-gram)); N rows       (Vedantam et al. 2015)

cos' takes no more of an n-gram from the prediction than the reference has; d is the difference of their lengths; σ = 6: CIDEr-D
of the COCO caption evaluation. The weights come from the references that are scored, so figures of different sets of rows
cannot be compared, and a single row, where nothing is rare, scores 0.

NIST is over the words of mteval-v13a, the others over those of the Penn Treebank. Rows that do not fit are a `DataError`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from .rows import References, Words, in_words
from .tokens import mteval_words, treebank_words

NIST_ORDERS, CIDER_ORDERS = range(1, 6), range(1, 5)
BETA, SIGMA = 1.2, 6.0

Weights = Mapping[tuple[str, ...], float]


def ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """How often each run of `n` words occurs.

    >>> ngrams(["a", "b", "a", "b"], 2)
    Counter({('a', 'b'): 2, ('b', 'a'): 1})
    """
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def nist(predictions: Sequence[str], references: References) -> float:
    """NIST; 0 when nothing matches.

    >>> round(nist(["the mill is a pub ."], [["the mill is a cheap pub .", "a pub is the mill ."]]), 3)
    3.65
    """
    hypotheses, targets = in_words(predictions, references, mteval_words)
    info = _information(targets)
    gain = sum(_gain(hypotheses, targets, n, info) for n in NIST_ORDERS)
    hyp_len, ref_len = sum(map(len, hypotheses)), fmean(len(words) for row in targets for words in row) * len(targets)
    if not hyp_len:
        return 0.0
    beta = math.log(0.5) / math.log(1.5) ** 2
    return gain * math.exp(beta * math.log(min(1.0, hyp_len / ref_len)) ** 2)


def _information(targets: Sequence[Sequence[Words]]) -> Weights:
    counts: Counter[tuple[str, ...]] = Counter()
    for words in (words for row in targets for words in row):
        counts[()] += len(words)
        for n in NIST_ORDERS:
            counts.update(ngrams(words, n))
    return {ngram: math.log2(counts[ngram[:-1]] / count) for ngram, count in counts.items() if ngram}


def _gain(hypotheses: Sequence[Words], targets: Sequence[Sequence[Words]], n: int, info: Weights) -> float:
    gained, predicted = 0.0, 0
    for words, row in zip(hypotheses, targets, strict=True):
        found, allowed = ngrams(words, n), Counter[tuple[str, ...]]()
        for target in row:
            allowed |= ngrams(target, n)
        gained += sum(info[ngram] * count for ngram, count in (found & allowed).items())
        predicted += found.total()
    return gained / predicted if predicted else 0.0


def rouge_l(predictions: Sequence[str], references: References) -> float:
    """ROUGE-L.

    >>> rouge_l(["The Mill is a pub."], [["The Mill is a pub, and cheap.", "A pub."]])
    100.0
    """
    return 100 * fmean(map(_f, *in_words(predictions, references, treebank_words)))


def _f(words: Words, targets: Sequence[Words]) -> float:
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


def cider(predictions: Sequence[str], references: References) -> float:
    """CIDEr; 10 at most.

    >>> texts = ["The Mill is a cheap pub.", "Aromi serves good Italian food."]
    >>> round(cider(texts, [[text] for text in texts]), 6)
    10.0
    """
    hypotheses, targets = in_words(predictions, references, treebank_words)
    having: Counter[tuple[str, ...]] = Counter()
    for row in targets:
        having.update({ngram for words in row for n in CIDER_ORDERS for ngram in ngrams(words, n)})

    def vector(words: Words, n: int) -> Weights:
        found = ngrams(words, n).items()
        return {ngram: count * math.log(len(targets) / max(1, having[ngram])) for ngram, count in found}

    def similarity(words: Words, row: Sequence[Words]) -> float:
        mine = {n: vector(words, n) for n in CIDER_ORDERS}
        return fmean(_closeness(words, target) * _cosine(mine[n], vector(target, n)) for target in row for n in CIDER_ORDERS)

    return fmean(10 * similarity(words, row) for words, row in zip(hypotheses, targets, strict=True))


def _closeness(words: Words, target: Words) -> float:
    # COCO's scripts count the bigrams as a text's length, which matters only to a text without words.
    return math.exp(-((max(0, len(words) - 1) - max(0, len(target) - 1)) ** 2) / (2 * SIGMA**2))


def _cosine(predicted: Weights, target: Weights) -> float:
    norms = math.hypot(*predicted.values()) * math.hypot(*target.values())
    shared = sum(min(value, target[ngram]) * target[ngram] for ngram, value in predicted.items() if ngram in target)
    return shared / norms if norms else 0.0
