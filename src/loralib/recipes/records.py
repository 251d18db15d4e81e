"""Files that come from elsewhere, as records by column: `.tsv`, `.csv` and `.jsonl` (or `.gz`), and tables of the hub.

A `.tsv` file is raw: tabs separate fields, quotes are text. A `.csv` file follows RFC 4180. A `.jsonl` file has one JSON object
a line. Columns are found by name in the first line (or in the objects); blank lines are passed over. What is wrong with a file
is a `DataError` that names the file and the line.
"""

import csv
import gzip
import io
import json
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DataError
from ..patterns import nearest_of

SUFFIXES = (".tsv", ".csv", ".jsonl")
KINDS = ".tsv, .csv or .jsonl file (or .gz of one)"

T = TypeVar("T")
Record = tuple[str, Mapping[str, object]]  # where it stands, for messages, and its values by column


def is_local_file(name: str) -> bool:
    """Whether `name` is meant as a local file, by its ending.

    >>> is_local_file("reviews.TSV.gz"), is_local_file("stanfordnlp/imdb")
    (True, False)
    """
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def kind_of(path: Path) -> str:
    """ "tsv", "csv" or "jsonl"; `DataError` for another ending."""
    if not is_local_file(path.name):
        raise DataError(f"{path} is no {KINDS}; convert it to one.")
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


@contextmanager
def opened(path: Path, kinds: str = KINDS) -> Iterator[io.TextIOBase]:
    """The file's text, unzipped where its name ends in `.gz`; `DataError` when it is not there, and for what turns out
    unreadable inside the block. kinds: what a message says was expected."""
    if not path.is_file():
        raise DataError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give the path of a {kinds}.")
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


def delimited_records(
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


def headless_records(path: Path, file: Iterable[str], width: int) -> Iterator[Record]:
    """The rows of a raw file without column names, by position ("0", "1" …); `width` fields are expected at least."""
    for where, row in _csv_rows(path, file, raw=True):
        if _is_blank(row, raw=True):
            continue
        if len(row) < width:
            raise DataError(f"{where} has {_fields(len(row))}, expected at least {width}.")
        yield where, {str(i): field for i, field in enumerate(row)}


def _fields(n: int) -> str:
    return f"{n} field{'s' * (n != 1)}"


def json_records(path: Path, file: Iterable[str], columns: Sequence[str]) -> Iterator[Record]:
    """The objects of a `.jsonl` file, which must have the `columns`."""
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


def sample(rows: Sequence[T], n: int | None, seed: int) -> Sequence[T]:
    """`n` rows drawn without replacement (all rows, as they are, when `n` is None or not smaller)."""
    return rows if n is None or n >= len(rows) else random.Random(seed).sample(rows, n)


def load_table(where: str, name: str, config: str | None, split: str, revision: str | None = None) -> Any:
    """One split of a data set on the Hugging Face hub, by `datasets`; `DataError`, which says `where`, if it cannot be had."""
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise DataError(f"{where} cannot be loaded ({reason}); check the name and the network, or give a local file.") from None
    finally:
        if not silent:
            datasets.enable_progress_bars()
