"""What is to be learned from a file of your own, by the columns of its first row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import records
from .chat.conversations import layout_of
from .chat.pairs import are_pairs
from .task import Problem


def problem_of(data: str) -> Problem | None:
    """The kind of task that the rows of a local `.jsonl` file say: preferences, conversations, or inputs with their texts.

    None for other data, which are texts with labels unless an option says otherwise, and for a file that cannot be read, whose
    reader will say why.
    """
    path = Path(data)
    if not records.is_local_file(data) or path.name.lower().removesuffix(".gz").rpartition(".")[2] != "jsonl":
        return None
    columns = records.first_columns(path)
    if {"context", "completion"} <= set(columns):
        return "generation"
    if are_pairs(columns):
        return "preference"
    return "chat" if layout_of(columns) else None


def with_problem(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, with the kind of task that the data say where none is given."""
    named = values.get("problem") or values.get("task")
    found = None if named or not values.get("data") else problem_of(str(values["data"]))
    return {**values, "problem": found} if found else dict(values)
