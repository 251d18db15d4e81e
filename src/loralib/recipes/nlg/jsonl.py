"""Data of one's own: a JSON object a line, with an input, its text or texts, and perhaps a category."""

from pathlib import Path

from ...errors import DataError
from ..records import json_records, listed, opened
from .documents import ending, of_kind
from .examples import Example, GenerationData, collected

KINDS = ".jsonl file (or .gz of one)"


def read_jsonl(
    path: str | Path, context: str = "context", completion: str = "completion", category: str | None = None
) -> GenerationData:
    """The inputs of a `.jsonl` file (or `.gz` of one), equal ones made one with the texts of all of them in order.

    context, completion: the fields of the input and of its text (a string) or texts (a list of strings). category: the field of
    the category, a string or null; by default "category", which may be missing. Texts are kept as they are. Raises `DataError`
    when the file does not exist, or has a line that is not such an object.
    """
    path = Path(path)
    ending(path, ("jsonl",), KINDS)
    with opened(path, KINDS) as file:
        rows = [_example(where, dict(row), context, completion, category) for where, row in json_records(path, file, ())]
    return collected(str(path), rows).merged()


def _example(where: str, row: dict[str, object], context: str, completion: str, category: str | None) -> Example:
    for name in (context, completion, *([category] if category else [])):
        if name not in row:
            raise DataError(f"{where} has no field {name!r}; it has {listed(list(row))}: rename one, or name the right one.")
    given = row[completion]
    texts = given if isinstance(given, list) else [given]
    if not texts:
        raise DataError(f"{where}: {completion!r} is an empty list; give at least one text.")
    label = row.get(category or "category")
    return Example(
        _filled(where, context, row[context]),
        tuple(_filled(where, completion, text) for text in texts),
        None if label is None else _filled(where, category or "category", label),
    )


def _filled(where: str, name: str, value: object) -> str:
    text = of_kind(f"{where}: {name!r}", value, str)
    if not text.strip():
        raise DataError(f"{where}: {name!r} is empty; give it a text, or remove the line.")
    return text
