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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....errors import DataError
from ...records import delimited_records, json_records, listed, opened

LINES = ("txt", "lex", "")
PREDICTIONS = "file of predictions: .txt, .lex, .tsv, .csv or .jsonl"
REFERENCES = "file of references: .txt, .lex, .csv or .jsonl"

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


@dataclass(frozen=True)
class ReferenceRows:
    """References of each row; and, where they are known, the row's category and input. `source` names them in messages."""

    source: str
    texts: list[tuple[str, ...]]
    categories: list[str | None] | None = None
    contexts: list[str] | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions, and what their file says besides; `source` names it in messages."""

    source: str
    texts: list[str]
    references: ReferenceRows | None = None
    contexts: list[str] | None = None


def read_predictions(path: str | Path) -> Predictions:
    """The predictions of a file. Raises `DataError` when it does not exist or is of no form above."""
    path = Path(path)
    kind = _kind(path)
    if kind in LINES:
        return Predictions(str(path), _lines(path, PREDICTIONS))
    if kind == "jsonl":
        return _json_predictions(path)
    if kind in ("tsv", "csv"):
        return _columns(path, raw=kind == "tsv")
    raise DataError(f"{path} is no {PREDICTIONS} (or .gz of one); convert it to one.")


def read_references(paths: Sequence[str | Path]) -> ReferenceRows:
    """The references of a file, or of several text files with as many lines.

    Raises `DataError` when one does not exist or is of no form above, or when they do not fit each other.
    """
    files = [Path(path) for path in paths]
    if len(files) == 1 and _kind(files[0]) == "csv":
        return _grouped(files[0], _csv_pairs(files[0]))
    if len(files) == 1 and _kind(files[0]) == "jsonl":
        return _json_references(files[0])
    for file in files:
        if _kind(file) not in LINES:
            several = len(files) > 1 and _kind(file) in ("csv", "jsonl")
            wanted = "text file; give it alone, or text files only" if several else f"{REFERENCES}; convert it to one"
            raise DataError(f"{file} is no {wanted}.")
    columns = [_lines(file, REFERENCES) for file in files]
    if len(files) == 1 and any("||" in line for line in columns[0][:1]):
        return _grouped(files[0], _bar_pairs(files[0], columns[0]))
    for file, column in zip(files, columns, strict=True):
        if len(column) != len(columns[0]):
            raise DataError(
                f"{file} has {len(column):,} lines and {files[0]} {len(columns[0]):,}; each must have a line an input."
            )
    return ReferenceRows(", ".join(map(str, files)), [tuple(row) for row in zip(*columns, strict=True)])


def _kind(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").rpartition(".")[2] if "." in path.name.removesuffix(".gz") else ""


def _lines(path: Path, kinds: str) -> list[str]:
    with opened(path, kinds) as file:
        text = file.read()
    # Only these end a line: what else Python takes for an end of line occurs within the texts.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines == [""]:
        raise DataError(f"{path} is empty; give a {kinds}.")
    return lines


def _columns(path: Path, raw: bool) -> Predictions:
    with opened(path, PREDICTIONS) as file:
        records = [row for _, row in delimited_records(path, file, (), raw=raw)]
    if not records:
        raise DataError(f"{path} has no row below its line of column names; give one a prediction.")
    names = {_unquoted(name).strip().lower() if raw else name.strip().lower(): name for name in records[0]}
    chosen = names.get("output") or names.get("prediction") or list(names.values())[-1]
    texts, inputs = _column(records, chosen, raw), names.get("mr")
    return Predictions(str(path), texts, contexts=_column(records, inputs, raw) if inputs and inputs != chosen else None)


def _column(records: Sequence[Mapping[str, object]], name: str, raw: bool) -> list[str]:
    return [_unquoted(str(row[name])) if raw else str(row[name]) for row in records]


def _unquoted(field: str) -> str:
    whole = _QUOTED.fullmatch(field)
    return whole[1].replace('""', '"') if whole else field


def _json_predictions(path: Path) -> Predictions:
    with opened(path, PREDICTIONS) as file:
        rows = list(json_records(path, file, ()))
    if not rows:
        raise DataError(f"{path} is empty; give an object with 'prediction' a line.")
    texts = [_text(where, row, "prediction") for where, row in rows]
    contexts = [_text(where, row, "context") for where, row in rows] if "context" in rows[0][1] else None
    if not any("references" in row for _, row in rows):
        return Predictions(str(path), texts, contexts=contexts)
    return Predictions(str(path), texts, _reference_rows(path, rows), contexts)


def _json_references(path: Path) -> ReferenceRows:
    with opened(path, REFERENCES) as file:
        rows = list(json_records(path, file, ()))
    if not rows:
        raise DataError(f"{path} is empty; give an object with 'references' a line.")
    return _reference_rows(path, rows)


def _reference_rows(path: Path, rows: Sequence[tuple[str, Mapping[str, object]]]) -> ReferenceRows:
    categories = [None if row.get("category") is None else _text(where, row, "category") for where, row in rows]
    return ReferenceRows(
        str(path),
        [_texts(where, row) for where, row in rows],
        categories if any(categories) else None,
        [_text(where, row, "context") for where, row in rows] if "context" in rows[0][1] else None,
    )


def _text(where: str, row: Mapping[str, object], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        problem = f"has no {name!r}; it has {listed(list(row))}" if name not in row else f"has a {name!r} that is no text"
        raise DataError(f"{where} {problem}: write {{{name!r}: a text}}.")
    return value


def _texts(where: str, row: Mapping[str, object]) -> tuple[str, ...]:
    value = row.get("references")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where} has no 'references' that is a list of texts; every row needs one, or none has it.")
    return tuple(texts)


def _csv_pairs(path: Path) -> list[tuple[str, str]]:
    with opened(path, REFERENCES) as file:
        records = list(delimited_records(path, file, (), raw=False))
    for where, row in records[:1]:
        if not {"mr", "ref"} <= set(row):
            raise DataError(f"{where} is of columns {listed(list(row))}; expected mr and ref.")
    return [(str(row["mr"]), str(row["ref"])) for _, row in records]


def _bar_pairs(path: Path, lines: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(lines, 1):
        context, bars, text = line.partition("||")
        if not bars and line.strip():
            raise DataError(f"{path}, line {number} has no two vertical bars, which line 1 has; write input||text in all.")
        if bars:
            pairs.append((context.strip(), text.strip()))
    return pairs


def _grouped(path: Path, pairs: Sequence[tuple[str, str]]) -> ReferenceRows:
    if not pairs:
        raise DataError(f"{path} has no references; give at least one.")
    found: dict[str, list[str]] = {}
    for context, text in pairs:
        found.setdefault(context, []).append(text)
    return ReferenceRows(str(path), [tuple(texts) for texts in found.values()], contexts=list(found))
