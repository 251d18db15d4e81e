"""Whole JSON and XML documents from strangers, and their fields.

A `.gz` of one is read too. An XML document with a DOCTYPE is refused, so that no entity is ever declared or expanded, and
nothing outside the file is read. What a document means is for the readers of the data sets to know.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ...errors import DataError
from ..records import listed, opened

T = TypeVar("T")

KINDS = ".json or .xml file (or .gz of one)"

_NAMES: dict[object, str] = {str: "text", list: "a list", dict: "an object"}


def ending(path: Path, known: Sequence[str], kinds: str) -> str:
    """The ending of a file's name, without `.gz`. Raises `DataError` when it is not known; `kinds` says what is.

    >>> ending(Path("train.JSON.gz"), ("json", "xml"), KINDS)
    'json'
    """
    found = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if found not in known:
        raise DataError(f"{path} is no {kinds}; convert it to one.")
    return found


def read_json(path: Path) -> object:
    """The value of a JSON file. Raises `DataError` when it is not JSON."""
    with opened(path, KINDS) as file:
        try:
            return json.load(file)
        except UnicodeDecodeError:  # a ValueError too, but one that `opened` explains
            raise
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON ({error}); fetch or write it again.") from None


def read_xml(path: Path) -> ET.Element:
    """The root of an XML file. Raises `DataError` when it is not well-formed or has a DOCTYPE."""
    with opened(path, KINDS) as file:
        text = file.read()
    # Outside comments and CDATA these characters can only open a DOCTYPE, so a plain search lets none through.
    if "<!DOCTYPE" in text:
        raise DataError(f"{path} has a DOCTYPE, which could make a small file expand without end; remove it and its entities.")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise DataError(f"{path} is not well-formed XML ({error}); fetch or write it again.") from None


def field(where: str, value: object, name: str, kind: type[T]) -> T:
    """A field of an object. Raises `DataError` when `value` is no object, or its field is missing or of another kind.

    >>> field("a.json, entry 1", {"category": "City"}, "category", str)
    'City'
    """
    fields = of_kind(where, value, dict)
    if name not in fields:
        raise DataError(f"{where} has no {name!r}, which it needs; it has {listed([str(key) for key in fields])}.")
    return of_kind(f"{where}: {name!r}", fields[name], kind)


def of_kind(where: str, value: object, kind: type[T]) -> T:
    """The value. Raises `DataError` when it is of another kind.

    >>> of_kind("a.json", [1], list)
    [1]
    """
    if not isinstance(value, kind):
        raise DataError(f"{where} is {_shown(value)}, not {_NAMES[kind]}; fetch or write it again.")
    return value


def _shown(value: object) -> str:
    # Never the repr of a list or an object, which can be as long and as deep as the file.
    if isinstance(value, list | dict):
        return _NAMES[type(value)]
    return f"{value!r:.60}"


def records(where: str, value: object) -> list[Mapping[str, object]]:
    """A list of objects, which tables of the hub give as such or as an object of lists.

    Raises `DataError` when `value` is neither.

    >>> records("row 1", {"a": [1, 2], "b": [3, 4]})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]
    """
    if isinstance(value, list):
        return [of_kind(f"{where}, item {i}", item, dict) for i, item in enumerate(value, 1)]
    columns = {str(name): field(where, value, name, list) for name in of_kind(where, value, dict)}
    if len({len(column) for column in columns.values()}) > 1:
        raise DataError(f"{where} has lists of different lengths; fetch the data again.")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
