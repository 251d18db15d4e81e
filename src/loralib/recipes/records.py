"""Rows of data: files from elsewhere (`.tsv`, `.csv`, `.jsonl`, or `.gz` of one), tables of the hub, and rows in memory.

A `.tsv` file is raw: tabs separate fields, quotes are text. A `.csv` file follows RFC 4180. A `.jsonl` file has one JSON object
a line. Blank lines are passed over. What is wrong with a file is a `DataError` that names the file and the line. In memory rows
are a `datasets.Dataset`, whose description is what messages call them.
"""

import csv
import gzip
import io
import json
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import DataError
from ..patterns import nearest_of
from ..storage.places import what_is_at

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".tsv", ".csv", ".jsonl")
LEAST_UNZIPPED, MOST_TIMES = 1 << 26, 100  # a .gz file may become so large, or so many times its size
KINDS = ".tsv, .csv or .jsonl file (or .gz of one)"
HUB_REMEDY = "check the name and the network, or give a local file"
RENAME = "Rename one, or name the right one with an option --…-column."

T = TypeVar("T")
Record = tuple[str, Mapping[str, Any]]  # where it stands, for messages, and its values by column


def is_local_file(name: str) -> bool:
    """Whether `name` is meant as a local file, by its ending.

    >>> is_local_file("reviews.TSV.gz"), is_local_file("stanfordnlp/imdb")
    (True, False)
    """
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def ending(path: Path, known: Sequence[str] = SUFFIXES, kinds: str = KINDS) -> str:
    """The ending of a file's name, without `.gz`; `DataError` when it is not known. kinds: what that says was expected.

    >>> ending(Path("train.CSV.gz"))
    '.csv'
    """
    found = Path(path.name.lower().removesuffix(".gz")).suffix
    if found not in known:
        raise DataError(f"{path} is not a {kinds}; convert it to one.")
    return found


def check_file(path: Path, kinds: str = KINDS) -> None:
    """`DataError` when there is no such file."""
    if not path.is_file():
        raise DataError(f"{path} {what_is_at(path)}; give the path of a {kinds}.")


def read_text(path: Path, kinds: str = KINDS) -> str:
    """The file's text, unzipped where its name ends in `.gz`; `DataError` when it is not there or cannot be read."""
    check_file(path, kinds)
    try:
        if path.suffix.lower() != ".gz":
            with path.open(encoding="utf-8-sig", newline="") as plain:
                return plain.read()
        most = max(LEAST_UNZIPPED, MOST_TIMES * path.stat().st_size)
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            text = file.read(most + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch or compress it again.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}); convert it to UTF-8 first.") from None
    if len(text) > most:
        raise DataError(f"{path} becomes more than {most:,} characters when it is unzipped; if you trust it, unzip it first.")
    return text


def read_records(
    path: Path,
    columns: Sequence[str] = (),
    *,
    kinds: str = KINDS,
    remedy: str = RENAME,
    header: Sequence[str] = (),
    malformed: list[str] | None = None,
) -> list[Record]:
    """The rows of a `.tsv`, `.csv` or `.jsonl` file, which must have the `columns`.

    header: the names of a delimited file's columns, where its first line does not have them. malformed: gets what is wrong with
    lines of another number of fields, which is otherwise an error.
    """
    kind, text = ending(path), read_text(path, kinds)
    if kind == ".jsonl":
        records = list(_json_records(path, text))
        for where, row in records:
            check_names(where, columns, list(row), remedy=remedy)
        return records
    rows = _tsv_rows(text) if kind == ".tsv" else _csv_rows(path, text)
    if not header and not rows:
        raise DataError(f"{path} is empty; give a file with a line of column names and one example a line.")
    names = header or rows.pop(0)[1]
    check_names(str(path), columns, names, remedy=remedy)
    rule = f"expected {len(names)}" + ("" if header else " as in the first line")
    return list(_delimited(path, rows, names, rule, kind == ".tsv", malformed))


def first_columns(path: Path) -> list[str]:
    """The columns of a file's first row; none when it is not there or cannot be read."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline=None) as file:
            if ending(path) != ".jsonl":
                return next(csv.reader(file, delimiter="\t" if ending(path) == ".tsv" else ","), [])
            row = json.loads(next((line for line in file if line.strip()), "null"))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, csv.Error):
        return []
    return list(row) if isinstance(row, dict) else []


def numbered(where: str, rows: Iterable[T]) -> Iterator[tuple[str, T]]:
    """The rows, each with its place for messages."""
    return ((f"{where} {number}", row) for number, row in enumerate(rows, 1))


def numbered_lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place for messages."""
    lines = numbered(f"{path}, line", io.StringIO(text, newline=None))
    return ((where, line.removesuffix("\n")) for where, line in lines if line.strip())


def _tsv_rows(text: str) -> list[tuple[int, list[str]]]:
    lines = (line.removesuffix("\n") for line in io.StringIO(text, newline=None))
    return [(number, line.split("\t") if line else []) for number, line in enumerate(lines, 1)]


def _csv_rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """The rows, each with the line that it begins in; a `DataError` names that line too."""
    reader, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    rows = []
    limit = csv.field_size_limit(1 << 30)
    try:
        for row in reader:
            rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: the record that begins here is not valid ({error}); check its quotes.") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _delimited(
    path: Path, rows: list[tuple[int, list[str]]], names: Sequence[str], rule: str, raw: bool, malformed: list[str] | None
) -> Iterator[Record]:
    for line, row in rows:
        if len(names) > 1 and (raw or len(row) < 2) and not "".join(row).strip():
            continue
        fields, where = row or [""], f"{path}, line {line}"
        if len(fields) == len(names):
            yield where, dict(zip(names, fields, strict=True))
            continue
        problem = f"{where} has {len(fields)} field{'s' * (len(fields) != 1)}, {rule}"
        if malformed is None:
            raise DataError(f"{problem}.")
        malformed.append(problem)


def _json_records(path: Path, text: str) -> Iterator[Record]:
    for where, line in numbered_lines(path, text):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({error}); write one object a line.") from None
        if not isinstance(row, dict):
            raise DataError(f"{where} is not a JSON object; write one object a line.")
        yield where, row


def check_names(where: str, wanted: Iterable[str], present: Sequence[str], what: str = "column", remedy: str = RENAME) -> None:
    """`DataError` when a name is not present, or is there twice."""
    for name in wanted:
        if name not in present:
            nearest = nearest_of(name, present)
            raise DataError(f"{where} has no {what} {name!r}; it has {listed(present)}. Nearest: {nearest}. {remedy}")
        if present.count(name) > 1:
            raise DataError(f"{where} has {present.count(name)} {what}s named {name!r}; rename all but one.")


def listed(names: Sequence[str], most: int = 8, width: int = 60) -> str:
    """Names for a message, so that it stays one sentence however many and long they are.

    >>> listed(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    shown = [repr(name if len(name) < width else name[: width - 1] + "…") for name in names[:most]]
    return (", ".join(shown) or "none") + (f" and {len(names) - most} more" if len(names) > most else "")


def dataset(source: str, rows: Iterable[Mapping[str, Any]], nothing: str) -> "Dataset":
    """The rows in memory. Raises `DataError`, that there are no `nothing`, when there are none."""
    from datasets import Dataset, DatasetInfo

    rows = list(rows)
    if not rows:
        raise DataError(f"{source} has no {nothing}.")
    try:
        return Dataset.from_list(rows, info=DatasetInfo(description=source))
    except UnicodeEncodeError as error:
        raise DataError(f"{source} has text that is not Unicode ({error}); write it again.") from None


def source(data: "Dataset") -> str:
    """What messages call the data."""
    return str(data.info.description)


def sample(data: "Dataset", n: int | None, seed: int) -> "Dataset":
    """`n` rows drawn without replacement (all rows, as they are, when `n` is None or not smaller)."""
    return data if n is None or n >= len(data) else data.select(random.Random(seed).sample(range(len(data)), n))


def split(data: "Dataset", fraction: float, seed: int, by: str | None = None) -> tuple["Dataset", "Dataset"]:
    """Two disjoint parts, the second with about `fraction` of the rows, drawn at random; `DataError` when one would be empty.

    by: a column; rows that are equal in it stay together, in the order of the data, and `fraction` is of its values.
    """
    keys = list(range(len(data)) if by is None else dict.fromkeys(data[by][:]))
    random.Random(seed).shuffle(keys)
    n = round(fraction * len(keys))
    if not 0 < n < len(keys):
        effect, change = ("holds nothing out", "larger") if n <= 0 else ("leaves nothing to train on", "smaller")
        found = f"{source(data)} ({len(keys)} {'rows' if by is None else 'different inputs'})"
        raise DataError(f"{found}: --eval-fraction {fraction:g} {effect}; give --eval-data or a {change} fraction.")
    parts = [keys[n:], keys[:n]]
    if by is not None:
        chosen = set(keys[:n])
        parts = [[i for i, value in enumerate(data[by][:]) if (value in chosen) == held_out] for held_out in (False, True)]
    train, held_out = map(data.select, parts)
    held_out.info.description += " (held out)"
    return train, held_out


def load_table(name: str, config: str | None, split: str, remedy: str, revision: str | None = None) -> "Dataset":
    """One split of a data set on the Hugging Face hub; `DataError`, with the `remedy`, if it cannot be had."""
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    where = f"hub data set {name!r}" + (f" ({config})" if config else "") + f", split {split!r}"
    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise DataError(f"{where} cannot be loaded ({reason}); {remedy}.") from None
    finally:
        if not silent:
            datasets.enable_progress_bars()
    table.info.description = where
    return table
