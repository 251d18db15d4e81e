"""Predictions and references in files, in the forms in which people have them.

Predictions, one a row:

- `.txt`, `.lex` or a name without an ending: a line each; a blank line is an empty prediction.
- `.tsv` (raw tabs; a field that stands in quotes whole is taken out of them), `.csv`: the column `output` or `prediction`, or
  else the last. The column `mr`, in any case, is the input.
- `.jsonl`: an object with `prediction`, and perhaps `references`, `category` and `context` (the input).

References, in the order of the predictions:

- text files with as many lines, one reference a line each, a blank line being none;
- one `.csv` with columns `mr` and `ref`, or one `.txt` with `input||text`: equal inputs are one row, where the first is;
- one `.jsonl`: an object with `references`, and perhaps `category` and `context`.

Each may be gzipped (`.gz`).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import DataError
from ...records import Record, ending, read_records, read_text
from ..documents import checked
from ..e2e import bar_rows, published_rows
from ..examples import Example, example, grouped

LINES = (".txt", ".lex", "")
PREDICTIONS = "file of predictions: .txt, .lex, .tsv, .csv or .jsonl"
REFERENCES = "file of references: .txt, .lex, .csv or .jsonl"

REFS = {"references": [str]}

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


@dataclass(frozen=True)
class ReferenceRows:
    """References of each row; and, where they are known, the row's category and input. `source` names them in messages."""

    source: str
    texts: Sequence[Sequence[str]]
    categories: Sequence[str | None] | None = None
    contexts: Sequence[str] | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions, and what else their file says; `source` names it in messages."""

    source: str
    texts: list[str]
    references: ReferenceRows | None = None
    contexts: list[str] | None = None


def read_predictions(path: str | Path) -> Predictions:
    """The predictions of a file. Raises `DataError` when it does not exist or is of no form above."""
    path = Path(path)
    kind = ending(path, (*LINES, ".tsv", ".csv", ".jsonl"), f"{PREDICTIONS} (or .gz of one)")
    if kind in LINES:
        return Predictions(str(path), _lines(path, PREDICTIONS))
    records = _some(path, read_records(path, kinds=PREDICTIONS), "a prediction")
    if kind != ".jsonl":
        return _of_columns(path, records, raw=kind == ".tsv")
    references = _of_json(path, records) if any("references" in row for _, row in records) else None
    return Predictions(str(path), _field(records, "prediction"), references, _contexts(records))


def read_references(paths: Sequence[str | Path]) -> ReferenceRows:
    """The references of a file, or of several text files with as many lines.

    Raises `DataError` when one does not exist or is of no form above, or when they do not fit each other.
    """
    files = [Path(path) for path in paths]
    kinds = [ending(file, (*LINES, ".csv", ".jsonl"), REFERENCES) for file in files]
    first, kind = files[0], kinds[0]
    if len(files) > 1:
        for file in (file for file, kind in zip(files, kinds, strict=True) if kind not in LINES):
            raise DataError(f"{file} is no text file; give it alone, or text files only.")
    if kind == ".jsonl":
        return _of_json(first, _some(first, read_records(first, kinds=REFERENCES), "references"))
    if kind == ".csv":
        return _by_input(first, (example(row["mr"], [row["ref"]]) for _, row in published_rows(first, REFERENCES)))
    columns = [_lines(file, REFERENCES) for file in files]
    if len(files) == 1 and "||" in columns[0][0]:
        return _by_input(first, (example(context, [text]) for _, context, text in bar_rows(first, REFERENCES)))
    for file, column in zip(files, columns, strict=True):
        if len(column) != len(columns[0]):
            raise DataError(
                f"{file} has {len(column):,} lines and {first} {len(columns[0]):,}; each must have a line an input."
            )
    return ReferenceRows(", ".join(map(str, files)), list(zip(*columns, strict=True)))


def _lines(path: Path, kinds: str) -> list[str]:
    # Only these end a line: what else Python takes for an end of line occurs within the texts.
    lines = read_text(path, kinds).replace("\r\n", "\n").removesuffix("\n").split("\n")
    return _some(path, lines if lines != [""] else [], "a text")


def _some(path: Path, rows: list[Any], what: str) -> list[Any]:
    if not rows:
        raise DataError(f"{path} is empty or has no row below its column names; give it {what} a line.")
    return rows


def _of_columns(path: Path, records: Sequence[Record], raw: bool) -> Predictions:
    def plain(field: str) -> str:
        whole = _QUOTED.fullmatch(field) if raw else None
        return whole[1].replace('""', '"') if whole else field

    names = {plain(name).strip().lower(): name for name in records[0][1]}
    chosen, inputs = names.get("output") or names.get("prediction") or list(names.values())[-1], names.get("mr")
    texts = [plain(row[chosen]) for _, row in records]
    contexts = [plain(row[inputs]) for _, row in records] if inputs and inputs != chosen else None
    return Predictions(str(path), texts, contexts=contexts)


def _of_json(path: Path, records: Sequence[Record]) -> ReferenceRows:
    texts = [
        checked(where, {**row, "references": [row["references"]]} if isinstance(row.get("references"), str) else row, REFS)
        for where, row in records
    ]
    categories = [None if row.get("category") is None else _field([(where, row)], "category")[0] for where, row in records]
    found = [tuple(row["references"]) for row in texts]
    return ReferenceRows(str(path), found, categories if any(categories) else None, _contexts(records))


def _field(records: Sequence[Record], name: str) -> list[str]:
    return [checked(where, row, {name: str})[name] for where, row in records]


def _contexts(records: Sequence[Record]) -> list[str] | None:
    return _field(records, "context") if "context" in records[0][1] else None


def _by_input(path: Path, rows: Iterable[Example]) -> ReferenceRows:
    found = _some(path, grouped(rows), "references")
    return ReferenceRows(str(path), [tuple(row["references"]) for row in found], contexts=[row["context"] for row in found])
