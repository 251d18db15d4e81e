"""Labelled text from local files (`.tsv`, `.csv`, `.jsonl`, each also `.gz`) and hubs.

Space around a label is no part of it.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import DataError
from ..records import Record, check_columns, delimited_records, headless_records, json_records, kind_of, load_table, opened


@dataclass(frozen=True)
class TextData:
    """Texts (or pairs of texts) and their labels as they stand in the data; `source` names them in messages.

    counts: where these rows are a part of the data, how often each label occurs in all of it.
    """

    source: str
    texts: list[str]
    labels: list[str]
    pairs: list[str] | None = None
    counts: Mapping[str, int] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def label_counts(self) -> Mapping[str, int]:
        """How often each label occurs in the whole data, of which these rows may be a part."""
        return Counter(self.labels) if self.counts is None else self.counts

    def rows(self, indices: Sequence[int]) -> "TextData":
        """The chosen rows, in that order.

        >>> TextData("x", ["a", "b"], ["0", "1"]).rows([1]).texts
        ['b']
        """
        texts, labels = [self.texts[i] for i in indices], [self.labels[i] for i in indices]
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return TextData(self.source, texts, labels, pairs, self.label_counts)

    def sample(self, n: int | None, seed: int) -> "TextData":
        """`n` rows drawn without replacement (all rows, as they are, when `n` is None or not smaller)."""
        return self if n is None or n >= len(self) else self.rows(random.Random(seed).sample(range(len(self)), n))

    def split(self, fraction: float, seed: int) -> tuple["TextData", "TextData"]:
        """Two disjoint parts, the second with about `fraction` of the rows, drawn at random whatever their labels.

        Raises `DataError` when one would be empty.
        """
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        held_out = round(fraction * len(self))
        if not 0 < held_out < len(self):
            effect, change = ("holds nothing out", "larger") if held_out == 0 else ("leaves nothing to train on", "smaller")
            raise DataError(
                f"{self.source} ({len(self)} rows): --eval-fraction {fraction:g} {effect}; "
                f"give --eval-data or a {change} fraction."
            )
        return self.rows(order[held_out:]), replace(self.rows(order[:held_out]), source=f"{self.source} (held out)")


@dataclass(frozen=True)
class Unlabelled:
    """Texts (or pairs of texts) without labels, with the number that each row has where it comes from."""

    source: str
    ids: list[str]
    texts: list[str]
    pairs: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)


def read_file(path: str | Path, text: str, label: str, pair: str | None = None, *, most_broken: float = 0.0) -> TextData:
    """The rows of a local file; `text`, `label` and `pair` are names of its columns.

    most_broken: what share of a `.tsv` file's lines may have a wrong number of fields; they are passed over and counted in
    `source`. Raises `DataError` when the file does not exist, is of no known kind, is empty, cannot be decoded, lacks a column
    or has a row without a label.
    """
    path = Path(path)
    kind, columns = kind_of(path), _columns(text, label, pair)
    with opened(path) as file:
        if kind == "jsonl":
            records = json_records(path, file, columns)
            return _text_data(str(path), records, text, label, pair)
        broken: list[str] = []
        records = delimited_records(path, file, columns, raw=kind == "tsv", broken=broken if most_broken else None)
        data = _text_data(str(path), records, text, label, pair)
    if len(broken) > max(1, most_broken * (len(data) + len(broken))):
        raise DataError(f"{broken[0]} (and {len(broken) - 1} more such lines); fetch the file again.")
    return replace(data, source=f"{path} ({len(broken)} malformed lines passed over)") if broken else data


def read_unlabelled(path: str | Path, number: str, text: str, pair: str | None = None) -> Unlabelled:
    """The rows of a local file without labels; `number`, `text` and `pair` are names of its columns. Errors as `read_file`."""
    data = read_file(path, text, number, pair)
    return Unlabelled(data.source, data.labels, data.texts, data.pairs)


def read_hub_unlabelled(
    name: str, config: str | None, split: str, number: str, text: str, pair: str | None = None
) -> Unlabelled:
    """One split of a hub data set without its labels. Errors as `read_hub`."""
    data = read_hub(name, config, split, text, number, pair)
    return Unlabelled(data.source, data.labels, data.texts, data.pairs)


def read_headless(path: Path, text: int, label: int) -> TextData:
    """The rows of a raw `.tsv` file without column names; `text` and `label` are positions, from 0."""
    if kind_of(path) != "tsv":
        raise DataError(f"{path} has no line of column names and must be a .tsv file (or .gz of one).")
    with opened(path) as file:
        return _text_data(str(path), headless_records(path, file, max(text, label) + 1), str(text), str(label), None)


def _columns(text: str, label: str, pair: str | None) -> list[str]:
    return [text, label] + ([pair] if pair else [])


def _text_data(source: str, records: Iterable[Record], text: str, label: str, pair: str | None) -> TextData:
    texts: list[str] = []
    labels: list[str] = []
    pairs: list[str] = []
    for where, row in records:
        texts.append(_text_of(where, row, text))
        labels.append(_label_of(where, row, label))
        if pair:
            pairs.append(_text_of(where, row, pair))
    if not texts:
        raise DataError(f"{source} has no rows; give data with at least one labelled example.")
    return TextData(source, texts, labels, pairs if pair else None)


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
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def read_hub(name: str, config: str | None, split: str, text: str, label: str, pair: str | None = None) -> TextData:
    """One split of a data set on the Hugging Face hub, by `datasets`; labels take their class names where they have some.

    Raises `DataError` when it cannot be had (offline included), lacks a column or has a row without a label.
    """
    where = f"hub data set {name!r}" + (f" ({config})" if config else "") + f", split {split!r}"
    table, columns = load_table(where, name, config, split), _columns(text, label, pair)
    check_columns(where, columns, table.column_names)
    names: Sequence[str] = getattr(table.features[label], "names", None) or []
    values = {column: list(table[column]) for column in columns}
    values[label] = [names[v] if names and v is not None and v >= 0 else v for v in values[label]]
    rows = zip(*values.values(), strict=True)
    records = ((f"{where}, row {i}", dict(zip(values, row, strict=True))) for i, row in enumerate(rows, 1))
    return _text_data(where, records, text, label, pair)
