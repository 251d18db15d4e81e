"""Predictions and their references, row by row: what every metric here takes, and checks first.

A row is one input: one prediction, and at least one reference. Rows need not have equally many. A blank reference is none:
files side by side hold blank lines where an input has fewer references than another. (Two scripts do count it: see `multi_bleu`
and `row_ters`.)
"""

from collections.abc import Callable, Sequence
from typing import cast

from ....errors import DataError

References = Sequence[Sequence[str]]
Words = Sequence[str]


def check(predictions: Sequence[str], references: References) -> None:
    """`DataError` when there are no rows, not as many predictions as rows of references, or a row without a reference."""
    if len(predictions) != len(references):
        found = f"there are {len(predictions):,} predictions and {len(references):,} rows of references"
        raise DataError(f"{found}; give one an input.")
    if not predictions:
        raise DataError("there are no predictions; give at least one.")
    for number, row in enumerate(references, 1):
        if isinstance(row, str):
            raise DataError(f"the references of row {number} are one text, {row!r:.60}; give a list of texts for each row.")
        if not given(row):
            raise DataError(f"row {number} has no reference; give it one, or leave the row out.")


def given(row: Sequence[str]) -> list[str]:
    """The references of a row that are not blank."""
    return [text for text in row if text.strip()]


def in_words(
    predictions: Sequence[str], references: References, words: Callable[[str], list[str]]
) -> tuple[list[Words], list[list[Words]]]:
    """The checked rows in words: predictions, and the references that are not blank."""
    check(predictions, references)
    return [words(text) for text in predictions], [[words(text) for text in given(row)] for row in references]


def files(references: References, repeat: bool = False) -> list[list[str]]:
    """The references as files side by side; rows that have fewer are filled with blank ones or, with `repeat`, their first.

    >>> files([["a"], ["b", "c"]]), files([["a"], ["b", "c"]], repeat=True)
    ([['a', 'b'], ['', 'c']], [['a', 'b'], ['a', 'c']])
    """
    most = max(map(len, references), default=0)
    return [[row[i] if i < len(row) else row[0] if repeat else "" for row in references] for i in range(most)]


def streams(references: References) -> list[list[str]]:
    """The references as files, with None for blank ones, as sacrebleu takes them although its annotations leave it out.

    >>> streams([["a"], ["b", "", "c"]])
    [['a', 'b'], [None, 'c']]
    """
    return [[cast(str, text or None) for text in file] for file in files([given(row) for row in references])]
