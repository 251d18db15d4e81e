"""Labelled text from local files and hubs.

A `.tsv` file is raw: tabs separate fields, quotes are text. A `.csv` file follows RFC 4180. A `.jsonl` file has one JSON object
a line. Each may be gzipped (`.gz`). Columns are found by name in the first line (or in the objects). Space around a label is no
part of it, and blank lines are passed over.
"""

import csv
import gzip
import io
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..patterns import nearest_of

SUFFIXES = (".tsv", ".csv", ".jsonl")
KINDS = ".tsv, .csv or .jsonl file (or .gz of one)"

Record = tuple[str, Mapping[str, object]]  # where it stands, for messages, and its values by column


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


def is_local_file(name: str) -> bool:
    """Whether `name` is meant as a local file, by its ending.

    >>> is_local_file("reviews.TSV.gz"), is_local_file("stanfordnlp/imdb")
    (True, False)
    """
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


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
    kind, columns = _kind(path), _columns(text, label, pair)
    with _opened(path) as file:
        if kind == "jsonl":
            records = _json_records(path, file, columns)
            return _text_data(str(path), records, text, label, pair)
        broken: list[str] = []
        records = _delimited_records(path, file, columns, raw=kind == "tsv", broken=broken if most_broken else None)
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
    if _kind(path) != "tsv":
        raise DataError(f"{path} has no line of column names and must be a .tsv file (or .gz of one).")
    with _opened(path) as file:
        return _text_data(str(path), _headless_records(path, file, max(text, label) + 1), str(text), str(label), None)


def _kind(path: Path) -> str:
    if not is_local_file(path.name):
        raise DataError(f"{path} is no {KINDS}; convert it to one.")
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


@contextmanager
def _opened(path: Path) -> Iterator[io.TextIOBase]:
    """The file's text; `DataError` when it is not there, and for what turns out unreadable inside the block."""
    if not path.is_file():
        raise DataError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give the path of a {KINDS}.")
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch or compress it again.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}); convert it to UTF-8 first.") from None


def _csv_rows(path: Path, file: Iterable[str], raw: bool) -> Iterator[tuple[str, list[str]]]:
    """The rows, each with the line that it begins in; a `DataError` names that line too."""
    csv.field_size_limit(1 << 30)
    reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if raw else csv.reader(file, strict=True)
    line = 1
    try:
        for row in reader:
            yield f"{path}, line {line}", row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: the record that begins here is not valid ({error}); check its quotes.") from None


def _is_blank(row: list[str], raw: bool) -> bool:
    return (raw or len(row) < 2) and not "".join(row).strip()


def _delimited_records(
    path: Path, file: Iterable[str], columns: Sequence[str], raw: bool, broken: list[str] | None = None
) -> Iterator[Record]:
    """The rows by column. broken: gets what is wrong with lines of another number of fields, which is otherwise an error."""
    rows = _csv_rows(path, file, raw)
    _, header = next(rows, (None, None))
    if header is None:
        raise DataError(f"{path} is empty; give a file with a line of column names and one example a line.")
    check_columns(str(path), columns, header)
    for where, row in rows:
        if len(header) > 1 and _is_blank(row, raw):
            continue
        fields = row or [""]
        if len(fields) != len(header):
            problem = f"{where} has {_fields(len(fields))}, expected {len(header)} as in the first line"
            if broken is None:
                raise DataError(f"{problem}.")
            broken.append(problem)
            continue
        yield where, dict(zip(header, fields, strict=True))


def _headless_records(path: Path, file: Iterable[str], width: int) -> Iterator[Record]:
    for where, row in _csv_rows(path, file, raw=True):
        if _is_blank(row, raw=True):
            continue
        if len(row) < width:
            raise DataError(f"{where} has {_fields(len(row))}, expected at least {width}.")
        yield where, {str(i): field for i, field in enumerate(row)}


def _fields(n: int) -> str:
    return f"{n} field{'s' * (n != 1)}"


def _json_records(path: Path, file: Iterable[str], columns: Sequence[str]) -> Iterator[Record]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({error}); write one object a line.") from None
        if not isinstance(row, dict):
            raise DataError(f"{where} is not a JSON object; write one object a line.")
        check_columns(where, columns, list(row))
        yield where, row


def _columns(text: str, label: str, pair: str | None) -> list[str]:
    return [text, label] + ([pair] if pair else [])


def check_columns(source: str, columns: Sequence[str], present: Sequence[str]) -> None:
    """`DataError` when a column is not among those present, or is there twice."""
    for column in columns:
        if column not in present:
            raise DataError(
                f"{source} has no column {column!r}; it has {listed(present)}. "
                f"Nearest: {nearest_of(column, present)}. Name columns with --text-column, --label-column, --text-pair-column."
            )
        if present.count(column) > 1:
            raise DataError(f"{source} has {present.count(column)} columns named {column!r}; rename all but one.")


def listed(names: Sequence[str], most: int = 8, width: int = 60) -> str:
    """Names for a message, so that it stays one sentence however many and long they are.

    >>> listed(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    shown = [repr(name if len(name) < width else name[: width - 1] + "…") for name in names[:most]]
    return (", ".join(shown) or "none") + (f" and {len(names) - most} more" if len(names) > most else "")


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
    table, columns = _load_table(where, name, config, split), _columns(text, label, pair)
    check_columns(where, columns, table.column_names)
    names: Sequence[str] = getattr(table.features[label], "names", None) or []
    values = {column: list(table[column]) for column in columns}
    values[label] = [names[v] if names and v is not None and v >= 0 else v for v in values[label]]
    rows = zip(*values.values(), strict=True)
    records = ((f"{where}, row {i}", dict(zip(values, row, strict=True))) for i, row in enumerate(rows, 1))
    return _text_data(where, records, text, label, pair)


def _load_table(where: str, name: str, config: str | None, split: str) -> Any:
    import datasets  # noqa: PLC0415
    from datasets.exceptions import DatasetsError  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise DataError(f"{where} cannot be loaded ({reason}); check the name and the network, or give a local file.") from None
    finally:
        if not silent:
            datasets.enable_progress_bars()
