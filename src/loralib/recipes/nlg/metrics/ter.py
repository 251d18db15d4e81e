"""TER (Snover et al. 2006): the edits that make a prediction its reference, as a share of the reference's words.

Edits are words put in, left out or changed, and runs of words moved; their number is sacrebleu's, whose search is that of
tercom. Lower is better, and 1 is as bad as saying nothing. There are two ways to take many rows together:

- `corpus_ter`: all edits over all words, the words of a row being the mean of its references: sacrebleu's and tercom's.
- the mean of `row_ters`, the least TER of any reference of each row: the LoRA paper's, from WebNLG's GenerationEval. As there,
  a blank reference counts 1, so that a row with one is not worse. That script counts edits by pyter, whose search finds
  now and then another number.
"""

from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics.ter import TER

from .rows import References, check, given, streams


def corpus_ter(predictions: Sequence[str], references: References) -> float:
    """All edits over all words, case apart. Raises `DataError` for rows that do not fit.

    >>> corpus_ter(["the mill is a pub", "a pub"], [["the mill is a pub"], ["a cheap pub near here"]])
    0.3
    """
    check(predictions, references)
    return float(TER().corpus_score(list(predictions), streams(references)).score) / 100


def row_ters(predictions: Sequence[str], references: References) -> list[float]:
    """The least TER of a reference for each row, case apart.

    It takes seconds for a hundred long texts that are far from their references. Raises `DataError` for rows that do not fit.

    >>> row_ters(["the mill is a pub", "a pub"], [["the mill is a pub"], ["a cheap pub near here"]])
    [0.0, 0.6]
    """
    check(predictions, references)
    metric = TER()
    return [_least(metric, text, row) for text, row in zip(predictions, references, strict=True)]


def _least(metric: TER, text: str, row: Sequence[str]) -> float:
    targets = given(row)
    words = text.lower().split()
    bounds = [_bound(words, target.lower().split()) for target in targets]
    least = 1.0 if len(targets) < len(row) else float("inf")
    # The search is slow; what cannot be less need not be searched.
    for bound, target in sorted(zip(bounds, targets, strict=True)):
        if bound < least:
            least = min(least, float(metric.sentence_score(text, [target]).score) / 100)
    return least


def _bound(words: Sequence[str], target: Sequence[str]) -> float:
    """What TER is at least: moving words does not change which there are."""
    shared = (Counter(words) & Counter(target)).total()
    return (max(len(words), len(target)) - shared) / len(target)
