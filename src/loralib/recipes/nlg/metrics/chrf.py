"""chrF (Popović 2015) of a whole corpus, in hundredths, by sacrebleu: the F-score (β = 2) of runs of up to 6 letters.

Of several references, a row takes the best, and the first of those that are equally good: since their lengths count, the order
of references can matter where a prediction shares nothing with any of them. Case counts, and spaces do not. It is not chrF++,
which adds words.
"""

from collections.abc import Sequence

from sacrebleu.metrics.chrf import CHRF

from .rows import References, check, streams


def chrf(predictions: Sequence[str], references: References) -> float:
    """The score. Raises `DataError` for rows that do not fit.

    >>> chrf(["a pub", "an inn"], [["a pub", "a bar"], ["an inn"]])
    100.0
    """
    check(predictions, references)
    return float(CHRF().corpus_score(list(predictions), streams(references)).score)
