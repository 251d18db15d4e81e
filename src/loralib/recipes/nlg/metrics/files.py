"""Predictions and references in files, in the forms in which people have them, and which of them belong together.

Predictions, one a row:

- `.txt`, `.lex` or a name without an ending: a line each; a blank line is an empty prediction.
- `.tsv` (raw tabs; a field that stands in quotes whole is taken out of them), `.csv`: the column `output` or `prediction`, or
  else the last. The column `mr`, in any case, is the input.
- `.jsonl`: an object with `prediction`, and perhaps `references`, `category` and `context` (the input).

References, in the order of the predictions:

- text files with as many lines, one reference a line each, a blank line being none;
- one `.csv` with columns `mr` and `ref`, or one `.txt` with `input||text`: equal inputs are one row, where the first is;
- one `.jsonl`: an object with `references`, and perhaps `category` and `context`.

Each may be gzipped (`.gz`). Files of their own fit only by their order, which nothing can check; where both name their inputs,
in the same form, they are paired by them, whatever their order. What does not exist, is of no form above or does not fit is a
`DataError`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....errors import DataError
from ...records import Record, ending, read_records, read_text, source
from ..documents import checked
from ..e2e import bar_rows, published_rows
from ..examples import Example, example, grouped
from ..tasks import TASKS, read_split

LINES = (".txt", ".lex", "")
PREDICTIONS = "file of predictions: .txt, .lex, .tsv, .csv or .jsonl"
REFERENCES = "file of references: .txt, .lex, .csv or .jsonl"
OFFICIAL_E2E = "testset_w_refs.csv"

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


@dataclass(frozen=True)
class Rows:
    """What is known of each row: a prediction, references, the category, the input. `source` names it in messages."""

    source: str
    predictions: Sequence[str] | None = None
    references: Sequence[Sequence[str]] | None = None
    categories: Sequence[str | None] | None = None
    contexts: Sequence[str] | None = None


def read_predictions(path: str | Path) -> Rows:
    """The predictions of a file, and what else it says."""
    path = Path(path)
    kind = ending(path, (*LINES, ".tsv", ".csv", ".jsonl"), f"{PREDICTIONS} (or .gz of one)")
    if kind in LINES:
        return Rows(str(path), _lines(path, PREDICTIONS))
    records = _some(path, read_records(path, kinds=PREDICTIONS))
    if kind != ".jsonl":
        return _of_columns(path, records, raw=kind == ".tsv")
    found = _references(path, records) if any("references" in row for _, row in records) else Rows(str(path))
    return replace(found, predictions=_field(records, "prediction"), contexts=_contexts(records))


def read_references(paths: Sequence[str | Path]) -> Rows:
    """The references of a file, or of several text files with as many lines."""
    first, *others = files = [Path(path) for path in paths]
    kind, *_ = kinds = [ending(file, (*LINES, ".csv", ".jsonl"), REFERENCES) for file in files]
    alone = [file for file, kind in zip(files, kinds, strict=True) if kind not in LINES]
    if others and alone:
        raise DataError(f"{alone[0]} is no text file; give it alone, or text files only.")
    if kind == ".jsonl":
        return _references(first, _some(first, read_records(first, kinds=REFERENCES)))
    if kind == ".csv":
        return _by_input(first, (example(row["mr"], [row["ref"]]) for _, row in published_rows(first, REFERENCES)))
    columns = [_lines(file, REFERENCES) for file in files]
    if not others and "||" in columns[0][0]:
        return _by_input(first, (example(context, [text]) for _, context, text in bar_rows(first, REFERENCES)))
    for file, column in zip(files, columns, strict=True):
        if len(column) != len(columns[0]):
            raise DataError(
                f"{file} has {len(column):,} lines and {first} {len(columns[0]):,}; each must have a line an input."
            )
    return Rows(", ".join(map(str, files)), references=list(zip(*columns, strict=True)))


def _lines(path: Path, kinds: str) -> list[str]:
    # Only these end a line: what else Python takes for an end of line occurs within the texts.
    lines = read_text(path, kinds).replace("\r\n", "\n").removesuffix("\n").split("\n")
    return _some(path, lines if lines != [""] else [])


def _some(path: Path, rows: list[Any]) -> list[Any]:
    if not rows:
        raise DataError(f"{path} is empty or has no row below its line of column names; give it a row an input.")
    return rows


def _of_columns(path: Path, records: Sequence[Record], raw: bool) -> Rows:
    def plain(field: str) -> str:
        whole = _QUOTED.fullmatch(field) if raw else None
        return whole[1].replace('""', '"') if whole else field

    names = {plain(name).strip().lower(): name for name in records[0][1]}
    chosen, inputs = names.get("output") or names.get("prediction") or list(names.values())[-1], names.get("mr")
    contexts = [plain(row[inputs]) for _, row in records] if inputs and inputs != chosen else None
    return Rows(str(path), [plain(row[chosen]) for _, row in records], contexts=contexts)


def _references(path: Path, records: Sequence[Record]) -> Rows:
    def listed(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"references": [row["references"]]} if isinstance(row.get("references"), str) else row

    texts = [checked(where, listed(dict(row)), {"references": [str]})["references"] for where, row in records]
    categories = [None if row.get("category") is None else _field([(where, row)], "category")[0] for where, row in records]
    return Rows(str(path), None, texts, categories if any(categories) else None, _contexts(records))


def _field(records: Sequence[Record], name: str) -> list[str]:
    return [checked(where, row, {name: str})[name] for where, row in records]


def _contexts(records: Sequence[Record]) -> list[str] | None:
    return _field(records, "context") if "context" in records[0][1] else None


def _by_input(path: Path, rows: Iterable[Example]) -> Rows:
    return _of_examples(str(path), _some(path, grouped(rows)))


def _of_examples(source: str, rows: Sequence[Example]) -> Rows:
    references, contexts = [row["references"] for row in rows], [row["context"] for row in rows]
    categories = [row["category"] for row in rows]
    return Rows(source, None, references, categories if any(categories) else None, contexts)


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
    return [_of_examples(source(data), found) for found in (rows, grouped(rows))]


def matched(predictions: Rows, offered: Sequence[Rows]) -> Rows:
    """The first of the references offered that has as many rows as there are predictions, in the order of the predictions."""
    counts = [len(rows.references or ()) for rows in offered]
    n = len(predictions.predictions or ())
    if n not in counts:
        known = " or ".join(f"{count:,}" for count in dict.fromkeys(counts))
        raise DataError(
            f"{predictions.source} has {n:,} predictions, but {offered[0].source} has references for {known} inputs; "
            "give one prediction an input."
        )
    found = offered[counts.index(n)]
    asked, known_inputs = predictions.contexts, found.contexts
    if asked is None or known_inputs is None or asked == known_inputs or not set(asked) & set(known_inputs):
        return found
    places = {context: i for i, context in enumerate(known_inputs)}
    if len(places) < n or sorted(asked) != sorted(known_inputs):
        row, (answered, expected) = next(
            (i, pair) for i, pair in enumerate(zip(asked, known_inputs, strict=True), 1) if pair[0] != pair[1]
        )
        raise DataError(
            f"{predictions.source}, row {row}, answers {answered!r:.80}, but the references are those of {expected!r:.80} "
            f"({found.source}); bring the predictions into their order."
        )
    order = [places[context] for context in asked]
    categories = found.categories and [found.categories[i] for i in order]
    return replace(found, references=[(found.references or ())[i] for i in order], categories=categories, contexts=asked)
