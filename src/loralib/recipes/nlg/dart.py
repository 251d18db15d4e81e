"""DART 1.1.1: facts of tables as triples (Nan et al. 2021, 2007.02871), in JSON and in WebNLG's XML.

The paper's `format_converting_dart.py` fixes how an input reads, and so it does here: `subject : property : object` with the
property in lower case and the rest as it is (spaces at the ends of names included), triples joined by ` | `. Texts are kept
whatever their source, but for empty ones: the test set has one, for which the scripts made an empty row. Inputs have no
categories.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import DataError
from .documents import KINDS, ending, field, of_kind, read_json, records
from .examples import GenerationData, collected
from .triples import Entry, Triple, checked, examples, xml_entries


def read_dart(path: str | Path) -> GenerationData:
    """The triplesets of a `.json` or `.xml` file (or `.gz` of one), in order.

    Equal ones stay apart, as in the published references; `GenerationData.merged` makes them one. Raises `DataError` when the
    file does not exist, is not JSON or XML, or has an entry that lacks a part.
    """
    path = Path(path)
    kind = ending(path, ("json", "xml"), KINDS)
    return _data(str(path), xml_entries(path) if kind == "xml" else _json_entries(path))


def from_table(source: str, table: Any) -> GenerationData:
    """The triplesets of a table of the hub, with columns `tripleset` and `annotations`. Errors as `read_dart`."""
    return _data(source, (_entry(f"{source}, row {number}", row) for number, row in enumerate(table, 1)))


def _data(source: str, entries: Iterable[Entry]) -> GenerationData:
    return collected(source, examples(_lower_cased(entry) for entry in entries))


def _lower_cased(entry: Entry) -> Entry:
    return replace(entry, triples=tuple((subject, prop.lower(), value) for subject, prop, value in entry.triples))


def _json_entries(path: Path) -> Iterator[Entry]:
    for number, item in enumerate(of_kind(str(path), read_json(path), list), 1):
        yield _entry(f"{path}, entry {number}", item)


def _entry(where: str, item: object) -> Entry:
    triples = tuple(_triple(where, triple) for triple in field(where, item, "tripleset", list))
    annotations = records(f"{where}: 'annotations'", field(where, item, "annotations", object))
    texts = tuple((field(where, text, "source", str), field(where, text, "text", str)) for text in annotations)
    return checked(Entry(where, None, triples, texts))


def _triple(where: str, triple: object) -> Triple:
    parts = [of_kind(f"{where}: a part of a triple", part, str) for part in of_kind(f"{where}: a triple", triple, list)]
    if len(parts) != 3:
        raise DataError(f"{where} has a triple of {len(parts)} parts, expected subject, property and object.")
    return parts[0], parts[1], parts[2]
