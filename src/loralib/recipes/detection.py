"""What is to be learned from a file of your own, by the columns of its first row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import records
from .chat.conversations import layout_of
from .chat.pairs import are_pairs
from .task import Problem

_OF_LABELS = ("text_column", "text_pair_column", "label_column")


def problem_of(data: str) -> Problem | None:
    """What the rows of a local file are for: preferences, conversations, or in a `.jsonl` file inputs with their texts.

    None for other data, which are texts with labels unless an option says otherwise, and for a file that cannot be read, whose
    reader will say why.
    """
    path = Path(data)
    if not records.is_local_file(data):
        return None
    columns = records.first_columns(path)
    in_json = path.name.lower().removesuffix(".gz").endswith(".jsonl")
    if in_json and {"context", "completion"} <= set(columns):
        return "generation"
    if are_pairs(columns):
        return "preference" if in_json else None
    layout = layout_of(columns)
    return "chat" if layout and (in_json or layout != "text") else None


def with_problem(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, with the kind of task that the data say where none is given.

    Columns of texts and labels, or a layout of conversations, that options name say it too.
    """
    named = any(values.get(name) for name in ("problem", "task", *_OF_LABELS)) or not values.get("data")
    found: Problem | None = None
    if not named:
        found = problem_of(str(values["data"]))
        found = "chat" if values.get("layout") and found != "preference" else found
    return {**values, "problem": found} if found else dict(values)
