"""Data of your own: a JSON object a line, with an input, its text or texts, and perhaps a category."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ..records import ending, read_records
from .documents import checked
from .examples import Example, collected, example, grouped

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = ".jsonl file (or .gz of one)"


def read_jsonl(
    path: str | Path, context: str = "context", completion: str = "completion", category: str | None = None
) -> "Dataset":
    """The inputs of a `.jsonl` file (or `.gz` of one), equal ones made one with the texts of all of them in order.

    context, completion: the fields of the input and of its text (a string) or texts (a list of strings). category: the field of
    the category, a string or null; by default "category", which may be missing. Texts are kept as they are. Raises `DataError`
    when the file does not exist, or has a line that is not such an object.
    """
    path = Path(path)
    ending(path, (".jsonl",), KINDS)
    records = read_records(path, [context, completion, *([category] if category else [])], kinds=KINDS)
    rows = (_example(where, row, context, completion, category or "category") for where, row in records)
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
