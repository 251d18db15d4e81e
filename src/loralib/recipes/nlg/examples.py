"""Inputs, each with all the texts that people wrote for it, as data with the columns

    context: the input written as a line of text      references: its texts, at least one
    category: the part of the data that it is scored in, such as "seen" or "unseen"; None where there are no parts

What a model is trained on is one row per text; what it is scored on is one output per input, against all of that input's texts.
Nothing here is cut, lower-cased or tokenised, and no special token is added.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ...errors import DataError
from ..records import dataset, ending, read_records, source
from .documents import checked

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = ".jsonl file (or .gz of one)"


class Example(TypedDict):
    """One input."""

    context: str
    references: list[str]
    category: str | None


def example(context: str, references: Iterable[str], category: str | None = None) -> Example:
    """One input."""
    return {"context": context, "references": list(references), "category": category}


def collected(source: str, examples: Iterable[Example]) -> "Dataset":
    """The examples as data. Raises `DataError` when there are none."""
    return dataset(source, examples, "input with a text; give data with at least one")


def grouped(examples: Iterable[Example]) -> list[Example]:
    """The examples with equal inputs of one category made one, which has all their texts and stands where the first stood.

    The scripts of the LoRA paper score so.

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
    rows = ({"context": row["context"], "completion": text} for row in data.to_list() for text in row["references"])
    return dataset(source(data), rows, "text")


def read_jsonl(
    path: str | Path, context: str = "context", completion: str = "completion", category: str | None = None
) -> "Dataset":
    """Data of your own: a JSON object a line of a `.jsonl` file (or `.gz` of one), equal inputs made one.

    context, completion: the fields of the input and of its text or list of texts. category: the field of the category, a string
    or null; by default "category", which may be missing. Raises `DataError` for what cannot serve.
    """
    path = Path(path)
    ending(path, (".jsonl",), KINDS)
    records = read_records(path, [context, completion, *([category] if category else [])], kinds=KINDS)
    rows = [_example(where, row, context, completion, category or "category") for where, row in records]
    return collected(str(path), grouped(rows))


def _example(where: str, row: Mapping[str, Any], context: str, completion: str, category: str) -> Example:
    texts = row[completion] if isinstance(row[completion], list) else [row[completion]]
    if not texts:
        raise DataError(f"{where}: {completion!r} is an empty list; give at least one text.")
    label = None if row.get(category) is None else _filled(where, category, row[category])
    return example(_filled(where, context, row[context]), [_filled(where, completion, text) for text in texts], label)


def _filled(where: str, name: str, value: object) -> str:
    text: str = checked(f"{where}: {name!r}", value, str)
    if not text.strip():
        raise DataError(f"{where}: {name!r} is empty; give it a text, or remove the line.")
    return text
