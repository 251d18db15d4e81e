"""Predictions and references drawn by hypothesis, and two metrics as single numbers."""

import math
from collections.abc import Sequence

from hypothesis import strategies as st

from loralib.recipes.nlg.metrics import by_sacrebleu
from loralib.recipes.nlg.metrics.rows import References

Row = tuple[str, list[str]]


WORDS = st.sampled_from(["the", "mill", "is", "a", "pub", "near", "Aromi", "cheap", "£20", ".", ",", "1,000"])


TEXTS = st.lists(WORDS, min_size=1, max_size=9).map(" ".join)


ROWS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=6)


def multi(predictions: Sequence[str], references: References) -> float:
    """BLEU as multi-bleu.perl has it."""
    return by_sacrebleu.multi_bleu(predictions, references).score


def mean_ter(predictions: Sequence[str], references: References) -> float:
    """The mean of the rows' TER."""
    return math.fsum(by_sacrebleu.row_ters(predictions, references)) / len(predictions)


def parted(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The predictions, and the references."""
    return [text for text, _ in rows], [list(targets) for _, targets in rows]
