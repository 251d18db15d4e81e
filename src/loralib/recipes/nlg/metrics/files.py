"""Predictions and references in files, in the forms in which people have them, and which of them belong together.

Predictions, one a row:

- `.txt`, `.lex` or a name without an ending: a line each; a blank line is an empty prediction.
- `.tsv` (raw tabs; a field that stands in quotes whole is taken out of them), `.csv`: the column `output` or `prediction`, or
  else the last. The column `mr`, in any case, is the input. A first line that is an input or a sentence, and names no columns,
  is a row: of input and prediction, or of a prediction.
- `.jsonl`: an object with `prediction`, and perhaps `references`, `category` and `context` (the input: a text, or messages).

References, in the order of the predictions:

- text files with as many lines, one reference a line each, a blank line being none;
- one `.csv` with columns `mr` and `ref`, or one `.txt` with `input||text`: equal inputs are one row, where the first is;
- one `.jsonl`: an object with `references`, and perhaps `category` and `context`.

Each may be gzipped (`.gz`). Files of their own fit only by their order, which nothing can check; where both name their inputs,
they are paired by them, whatever their order (see `pairing`). What does not exist, is of no form above or does not fit is a
`DataError`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import DataError
from ....storage.json_text import as_json
from ...records import Record, ending, read_records, read_text, source
from ..documents import checked
from ..e2e import bar_rows, published_rows
from ..examples import Example, example, grouped
from ..tasks import TASKS, read_split
from . import pairing
from .pairing import looks_like_input

LINES = (".txt", ".lex", "")
PREDICTIONS = "file of predictions: .txt, .lex, .tsv, .csv or .jsonl"
REFERENCES = "file of references: .txt, .lex, .csv or .jsonl"
OFFICIAL_E2E = "testset_w_refs.csv"
FIELDS = {"references": [str], "context": str}

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """What is known of each row: `prediction`, `references`, `category`, `context`. `source` names them in messages."""

    source: str
    rows: Sequence[Row]

    def column(self, name: str) -> list[Any] | None:
        """One of these of every row; None when no row has it."""
        values = [row.get(name) for row in self.rows]
        return values if any(value is not None for value in values) else None


def read_predictions(path: str | Path) -> Rows:
    """The predictions of a file, and what else it says."""
    path = Path(path)
    kind = ending(path, (*LINES, ".tsv", ".csv", ".jsonl"), f"{PREDICTIONS} (or .gz of one)")
    if kind in LINES:
        return Rows(str(path), [{"prediction": line} for line in _lines(path, PREDICTIONS)])
    records = _some(path, read_records(path, kinds=PREDICTIONS))
    if kind == ".jsonl":
        return Rows(str(path), _of_json(records, {"prediction": str}))
    return Rows(str(path), _of_columns([row for _, row in records], raw=kind == ".tsv"))


def read_references(paths: Sequence[str | Path]) -> Rows:
    """The references of a file, or of several text files with as many lines."""
    first, *others = files = [Path(path) for path in paths]
    kind, *_ = kinds = [ending(file, (*LINES, ".csv", ".jsonl"), REFERENCES) for file in files]
    alone = [file for file, kind in zip(files, kinds, strict=True) if kind not in LINES]
    if others and alone:
        raise DataError(f"{alone[0]} is not a text file; give it alone, or text files only.")
    if kind == ".jsonl":
        return Rows(str(first), _of_json(_some(first, read_records(first, kinds=REFERENCES)), {"references": [str]}))
    if kind == ".csv":
        return _by_input(first, (example(row["mr"], [row["ref"]]) for _, row in published_rows(first, REFERENCES)))
    columns = [_lines(file, REFERENCES) for file in files]
    if not others and "||" in columns[0][0]:
        return _by_input(first, (example(context, [text]) for _, context, text in bar_rows(first, REFERENCES)))
    for file, column in zip(files, columns, strict=True):
        if len(column) != len(columns[0]):
            counts = f"{file} has {len(column):,} lines and {first} {len(columns[0]):,}"
            raise DataError(f"{counts}; each must have a line an input.")
    return Rows(", ".join(map(str, files)), [{"references": row} for row in zip(*columns, strict=True)])


def _lines(path: Path, kinds: str) -> list[str]:
    # Only these end a line: what else Python takes for an end of line occurs within the texts.
    lines = read_text(path, kinds).replace("\r\n", "\n").removesuffix("\n").split("\n")
    return _some(path, lines if lines != [""] else [])


def _some(path: Path, rows: list[Any]) -> list[Any]:
    if not rows:
        raise DataError(f"{path} is empty or has no row below its line of column names; give it a row an input.")
    return rows


def _of_columns(rows: Sequence[Row], raw: bool) -> list[Row]:
    def plain(field: str) -> str:
        whole = _QUOTED.fullmatch(field) if raw else None
        return whole[1].replace('""', '"') if whole else field

    names = {plain(name).strip().lower(): name for name in rows[0]}
    first = [plain(name) for name in rows[0]]
    if _is_row(first):
        fields = list(rows[0])
        chosen = {"prediction": fields[-1]} | ({"context": fields[0]} if looks_like_input(first[0]) and fields[1:] else {})
        return [{name: plain(row[column]) for name, column in chosen.items()} for row in ({f: f for f in fields}, *rows)]
    chosen = {"prediction": names.get("output") or names.get("prediction") or list(names.values())[-1]}
    if names.get("mr", chosen["prediction"]) != chosen["prediction"]:
        chosen["context"] = names["mr"]
    return [{name: plain(row[column]) for name, column in chosen.items()} for row in rows]


def _is_row(fields: Sequence[str]) -> bool:
    """Whether the first line of a table is a row: a field is an input, or several words that end a sentence."""
    ends = (field for field in fields if len(field.split()) > 2 and field.rstrip().endswith((".", "!", "?")))
    return any(map(looks_like_input, fields)) or any(ends)


def _of_json(records: Sequence[Record], needed: Row) -> list[Row]:
    present = set[str]().union(*(row for _, row in records))
    shape = {**needed, **{name: kind for name, kind in FIELDS.items() if name in present}}
    rows = []
    for where, row in records:
        alone: dict[str, Any] = {"references": [row["references"]]} if isinstance(row.get("references"), str) else {}
        asked = {"context": as_json(row["context"])} if isinstance(row.get("context"), list) else {}
        category = {} if row.get("category") is None else {"category": str}
        rows.append(checked(where, {**row, **alone, **asked}, {**shape, **category}))
    return rows


def _by_input(path: Path, rows: Iterable[Example]) -> Rows:
    return Rows(str(path), _some(path, grouped(rows)))


def of_task(task: str, data_dir: Path) -> list[Rows]:
    """The references of a task's test set in or below a folder: as it stands, and with equal inputs made one.

    For E2E the published file is preferred, since the outputs of other systems are scored with it.
    """
    if task not in TASKS:
        raise DataError(f"the task {task!r} has no test set of its own, so --data-dir cannot say it; give --references.")
    official = [path for path in (data_dir / "e2e" / OFFICIAL_E2E, data_dir / OFFICIAL_E2E) if path.is_file()]
    if task == "e2e" and official:
        return [read_references(official[:1])]
    data = read_split(task, "test", data_dir)
    rows: list[Example] = data.to_list()
    return [Rows(source(data), found) for found in (rows, grouped(rows))]


def matched(predictions: Rows, offered: Sequence[Rows], by_order: bool = False) -> Rows:
    """The first of the references offered that has as many rows as there are predictions, in the order of the predictions: by
    their inputs, where both name them, unless `by_order`."""
    n = len(predictions.rows)
    found = next((rows for rows in offered if len(rows.rows) == n), None)
    if found is None:
        counts = " or ".join(f"{count:,}" for count in dict.fromkeys(len(rows.rows) for rows in offered))
        has = f"{predictions.source} has {n:,} predictions, but {offered[0].source} has references for {counts} inputs"
        raise DataError(f"{has}; give one prediction an input.")
    asked, known = predictions.column("context"), found.column("context")
    if by_order or asked is None or known is None or asked == known:
        return found
    order = pairing.in_order_of(asked, known, {"asked": predictions.source, "known": found.source})
    return Rows(found.source, [found.rows[i] for i in order])
