"""Labelled text from local files and hubs.

A `.tsv` file is raw: tabs separate fields, quotes are text. A `.csv` file follows RFC 4180. A `.jsonl` file has one JSON object
a line. Each may be gzipped (`.gz`). Columns are found by name in the first line (or in the objects).
"""

import csv
import gzip
import io
import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..patterns import nearest_of

SUFFIXES = (".tsv", ".csv", ".jsonl")


@dataclass(frozen=True)
class TextData:
    """Texts (or pairs of texts) and their labels as they stand in the data; `source` names them in messages."""

    source: str
    texts: list[str]
    labels: list[str]
    pairs: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, indices: Sequence[int]) -> "TextData":
        """The chosen rows, in that order.

        >>> TextData("x", ["a", "b"], ["0", "1"]).rows([1]).texts
        ['b']
        """
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return replace(self, texts=[self.texts[i] for i in indices], labels=[self.labels[i] for i in indices], pairs=pairs)

    def sample(self, n: int | None, seed: int) -> "TextData":
        """`n` rows drawn without replacement (all rows, as they are, when `n` is None or not smaller)."""
        return self if n is None or n >= len(self) else self.rows(random.Random(seed).sample(range(len(self)), n))

    def split(self, fraction: float, seed: int) -> tuple["TextData", "TextData"]:
        """Two disjoint parts, the second with about `fraction` of the rows; `DataError` when one would be empty."""
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        held_out = round(fraction * len(self))
        if not 0 < held_out < len(self):
            raise DataError(f"{self.source}: {len(self)} rows are too few to hold out {fraction:g} of them; give --eval-data.")
        return self.rows(order[held_out:]), self.rows(order[:held_out])


def is_local_file(name: str) -> bool:
    """Whether `name` is meant as a local file, by its ending.

    >>> is_local_file("reviews.tsv.gz"), is_local_file("stanfordnlp/imdb")
    (True, False)
    """
    return name.removesuffix(".gz").endswith(SUFFIXES)


def read_file(path: str | Path, text: str, label: str, pair: str | None = None) -> TextData:
    """The rows of a local file; `text`, `label` and `pair` are names of its columns.

    Raises `DataError` when the file does not exist, is empty, cannot be decoded or lacks a column.
    """
    path = Path(path)
    columns = [text, label] + ([pair] if pair else [])
    rows = list(_records(path, columns))
    return _text_data(str(path), rows, text, label, pair)


def _text_data(source: str, rows: list[dict[str, str]], text: str, label: str, pair: str | None) -> TextData:
    if not rows:
        raise DataError(f"{source} has no rows; give a file with one example a line.")
    pairs = [row[pair] for row in rows] if pair else None
    return TextData(source, [row[text] for row in rows], [row[label] for row in rows], pairs)


def _open_text(path: Path) -> io.TextIOBase:
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="")


def _records(path: Path, columns: Sequence[str]) -> Iterable[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the path of a {', '.join(SUFFIXES)} file.")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    try:
        with _open_text(path) as file:
            if kind == "jsonl":
                yield from _json_records(path, file, columns)
            else:
                yield from _delimited_records(path, file, columns, raw=kind == "tsv")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}); convert it to UTF-8 first.") from None


def check_columns(source: str, columns: Sequence[str], present: Sequence[str], option: str = "") -> None:
    """`DataError` when a column is not among those present."""
    for column in columns:
        if column not in present:
            raise DataError(
                f"{source} has no column {column!r}; it has {', '.join(map(repr, present)) or 'none'}. "
                f"Nearest: {nearest_of(column, present)}. Name columns with --text-column, --label-column, --text-pair-column."
            )


def _delimited_records(path: Path, file: Iterable[str], columns: Sequence[str], raw: bool) -> Iterable[dict[str, str]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if raw else csv.reader(file)
    header = next(reader, None)
    if not header:
        raise DataError(f"{path} is empty; give a file with a line of column names and one example a line.")
    check_columns(str(path), columns, header)
    try:
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise DataError(f"{path}, line {reader.line_num}: {len(row)} fields, expected {len(header)}.")
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from None


def _json_records(path: Path, file: Iterable[str], columns: Sequence[str]) -> Iterable[dict[str, str]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON ({error}).") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not a JSON object.")
        check_columns(f"{path}, line {number}", columns, [key for key, value in row.items() if value is not None])
        yield {column: str(row[column]) for column in columns}


def read_headless(path: Path, text: int, label: int) -> TextData:
    """The rows of a raw `.tsv` file without column names; `text` and `label` are positions, from 0."""
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    with _open_text(path) as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    if any(len(row) <= max(text, label) for row in rows):
        raise DataError(f"{path}: a line has fewer than {max(text, label) + 1} fields.")
    return _text_data(str(path), [{"text": row[text], "label": row[label]} for row in rows], "text", "label", None)


def read_hub(name: str, config: str | None, split: str, text: str, label: str, pair: str | None = None) -> TextData:
    """One split of a data set on the Hugging Face hub, by `datasets`; labels take their class names where they have some.

    Raises `DataError` when it cannot be had (offline included) or lacks a column.
    """
    import datasets  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    where = f"hub data set {name!r}" + (f" ({config})" if config else "") + f", split {split!r}"
    try:
        table: Any = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where} cannot be loaded ({reason}); check the name and the network, or give a local file.") from None
    check_columns(where, [text, label] + ([pair] if pair else []), table.column_names)
    feature = table.features[label]
    values = table[label]
    labels = [feature.int2str(v) for v in values] if isinstance(feature, datasets.ClassLabel) else [str(v) for v in values]
    return TextData(where, [str(t) for t in table[text]], labels, [str(t) for t in table[pair]] if pair else None)


def label_names(data: TextData) -> list[str]:
    """The classes of a classification set, in order (numbers by value); `DataError` when there are fewer than two.

    >>> label_names(TextData("x", ["a", "b", "c"], ["10", "9", "10"]))
    ['9', '10']
    """
    names = set(data.labels)
    if len(names) < 2:
        raise DataError(
            f"{data.source}: all {len(data)} rows have the label {data.labels[0]!r}; classification needs two classes."
        )
    return sorted(names, key=lambda name: (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name))


def class_ids(data: TextData, names: Sequence[str]) -> list[int]:
    """The label of each row as a position in `names`; `DataError` for a label that is none of them."""
    ids = {name: i for i, name in enumerate(names)}
    for label in data.labels:
        if label not in ids:
            raise DataError(f"{data.source} has the label {label!r}, which is none of {', '.join(map(repr, names))}.")
    return [ids[label] for label in data.labels]


def scores(data: TextData) -> list[float]:
    """The label of each row as a number; `DataError` naming the first that is none."""
    values = []
    for row, label in enumerate(data.labels, 1):
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{data.source}, row {row}: the label {label!r} is no number, and regression needs numbers.")
        values.append(value)
    return values
