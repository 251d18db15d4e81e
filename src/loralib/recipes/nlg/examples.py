"""Inputs, each with all the texts that people wrote for it, as data with the columns

    context: the input written as a line of text      references: its texts, at least one
    category: the part of the data that it is scored in, such as "seen" or "unseen"; None where there are no parts

What a model is trained on is one row per text; what it is scored on is one output per input, against all of that input's texts.
Nothing here is cut, lower-cased or tokenised, and no special token is added.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

from .. import records

if TYPE_CHECKING:
    from datasets import Dataset


class Example(TypedDict):
    """One input."""

    context: str
    references: list[str]
    category: str | None


def example(context: str, references: Iterable[str], category: str | None = None) -> Example:
    """One input."""
    return {"context": context, "references": list(references), "category": category}


def collected(source: str, examples: Iterable[Example]) -> "Dataset":
    """The examples as data. Raises `DataError` when there are none.

    >>> len(collected("x", [example("a", ["One."])]))
    1
    """
    return records.dataset(source, examples, "input with a text; give data with at least one")


def grouped(examples: Iterable[Example]) -> list[Example]:
    """The examples with equal inputs made one, which has the texts of all of them in order; it stands where the first stood.

    The scripts of the LoRA paper score so. Inputs of different categories stay apart.

    >>> [row["references"] for row in grouped([example("a", ["One."]), example("b", ["Two."]), example("a", ["1."])])]
    [['One.', '1.'], ['Two.']]
    """
    found: dict[tuple[str, str | None], list[str]] = {}
    for row in examples:
        found.setdefault((row["context"], row["category"]), []).extend(row["references"])
    return [example(context, texts, category) for (context, category), texts in found.items()]


def pairs(data: "Dataset") -> "Dataset":
    """The rows to train on, with the columns `context` and `completion`: each text with its input.

    >>> pairs(collected("x", [example("a : 1", ["One.", "It is one."])]))["completion"][:]
    ['One.', 'It is one.']
    """
    rows = [{"context": row["context"], "completion": text} for row in data.to_list() for text in row["references"]]
    return records.dataset(records.source(data), rows, "text")
