"""Labelled text from local files (`.tsv`, `.csv`, `.jsonl`, each also `.gz`) and from the hub, with the columns

text    pair (only where texts come in pairs)    label (as it stands in the data, without space around it)
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError, DataError
from ..records import HUB_REMEDY, Record, check_names, dataset, ending, load_table, numbered, read_records, source

if TYPE_CHECKING:
    from datasets import Dataset


def read_file(
    path: str | Path,
    text: str,
    label: str,
    pair: str | None = None,
    *,
    header: Sequence[str] = (),
    most_malformed: float = 0.0,
) -> "Dataset":
    """The rows of a local file; `text`, `label` and `pair` are names of its columns. Raises `DataError` where it cannot serve.

    header: the names of a `.tsv` file's columns, where its first line does not have them. most_malformed: what share of its
    lines may have a wrong number of fields; they are passed over and counted in the data's source.
    """
    path = Path(path)
    if header and ending(path) != ".tsv":
        raise DataError(f"{path} has no line of column names and must be a .tsv file (or .gz of one).")
    malformed: list[str] = []
    columns = [text, label, *([pair] if pair else [])]
    records = read_records(path, columns, header=header, malformed=malformed if most_malformed else None)
    if len(malformed) > max(1, most_malformed * (len(records) + len(malformed))):
        raise DataError(f"{malformed[0]} (and {len(malformed) - 1} more such lines); fetch the file again.")
    passed_over = f" ({len(malformed)} malformed lines passed over)" if malformed else ""
    return _labelled(f"{path}{passed_over}", records, text, label, pair)


def check_columns(text: str, label: str, pair: str | None) -> None:
    """`ConfigError` when two of the columns are one, as when the label is read as a text too."""
    if label == text:
        raise ConfigError(f"--label-column {label}: that is the column of the text; name that of the label.")
    if pair in (text, label):
        of = "label" if pair == label else "first text"
        raise ConfigError(f"--text-pair-column {pair}: that is the column of the {of}; name that of the second text.")


def read_hub(
    name: str, config: str | None, split: str, text: str, label: str, pair: str | None = None, remedy: str = HUB_REMEDY
) -> "Dataset":
    """One split of a data set on the hub, labels by their class names where they have some. Errors as `read_file`."""
    table, columns = load_table(name, config, split, remedy), [text, label, *([pair] if pair else [])]
    check_names(source(table), columns, table.column_names)
    names = getattr(table.features[label], "names", ())
    rows = table.select_columns(list(dict.fromkeys(columns))).to_list()
    for row in rows if names else ():
        row[label] = names[row[label]] if row[label] is not None and row[label] >= 0 else row[label]
    return _labelled(source(table), numbered(f"{source(table)}, row", rows), text, label, pair)


def _labelled(source: str, records: Iterable[Record], text: str, label: str, pair: str | None) -> "Dataset":
    columns = {"text": text} | ({"pair": pair} if pair else {})
    rows = [
        {name: _text_of(where, row, column) for name, column in columns.items()} | {"label": _label_of(where, row, label)}
        for where, row in records
    ]
    return dataset(source, rows, "rows; give data with at least one labelled example")


def _text_of(where: str, row: Mapping[str, object], column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} is {value!r:.60}, not text; name a column of texts, or make it a string.")
    return value


def _label_of(where: str, row: Mapping[str, object], column: str) -> str:
    value = row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: {column!r} is empty; give every row a label.")
    if not isinstance(value, str | int | float):
        raise DataError(f"{where}: {column!r} is {value!r:.60}; a label is a string, a number or a boolean.")
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: {column!r} is {value}; give the row a label.")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
