"""DART 1.1.1: facts of tables as triples (Nan et al. 2021, 2007.02871), in JSON and in WebNLG's XML.

The paper's `format_converting_dart.py` fixes how an input reads, and so it does here: `subject : property : object` with the
property in lower case and the rest as it is (spaces at the ends of names included), triples joined by ` | `. Texts are kept
whatever their source, but for empty ones: the test set has one, for which the scripts made an empty row. Inputs have no
categories.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records import ending, source
from .documents import KINDS, SUFFIXES, checked, read_json
from .examples import collected
from .triples import Entry, examples, xml_entries

if TYPE_CHECKING:
    from datasets import Dataset

ENTRY = {"tripleset": [[str]], "annotations": [{"source": str, "text": str}]}


def read_dart(path: str | Path) -> "Dataset":
    """The triplesets of a `.json` or `.xml` file (or `.gz` of one), in order.

    Equal ones stay apart, as in the published references; `examples.grouped` makes them one. Raises `DataError` when the file
    does not exist, is not JSON or XML, or has an entry that lacks a part.
    """
    path = Path(path)
    if ending(path, SUFFIXES, KINDS) == ".xml":
        return _data(str(path), xml_entries(path))
    return _data(str(path), _entries(f"{path}, entry", checked(str(path), read_json(path), list)))


def from_table(table: "Dataset") -> "Dataset":
    """The triplesets of a table of the hub, with columns `tripleset` and `annotations`. Errors as `read_dart`."""
    return _data(source(table), _entries(f"{source(table)}, row", table))


def _data(source: str, entries: Iterable[Entry]) -> "Dataset":
    return collected(source, examples(entry._replace(triples=_lower_cased(entry.triples)) for entry in entries))


def _entries(where: str, items: Iterable[Any]) -> Iterable[Entry]:
    for number, item in enumerate(items, 1):
        entry = checked(f"{where} {number}", item, ENTRY)
        texts = [(text["source"], text["text"]) for text in entry["annotations"]]
        yield Entry(f"{where} {number}", None, entry["tripleset"], texts)


def _lower_cased(triples: Iterable[Any]) -> list[Any]:
    return [[*triple[:1], *(part.lower() for part in triple[1:2]), *triple[2:]] for triple in triples]
