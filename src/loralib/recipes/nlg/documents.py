"""Whole JSON and XML documents from strangers, and the shapes that their values must have.

A `.gz` of one is read too. An XML document with a DOCTYPE is refused, so that no entity is ever declared or expanded, and
nothing outside the file is read. What is wrong is a `DataError`.
"""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..records import check_names, read_text

SUFFIXES = (".json", ".xml")
KINDS = ".json or .xml file (or .gz of one)"

_NAMES: dict[type, str] = {str: "text", list: "a list", dict: "an object"}


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    text = read_text(path, KINDS)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); fetch or write it again.") from None


def read_xml(path: Path) -> ET.Element:
    """The root of an XML file."""
    text = read_text(path, KINDS)
    # Outside comments and CDATA these characters can only open a DOCTYPE, so a plain search lets none through.
    if "<!DOCTYPE" in text:
        raise DataError(f"{path} has a DOCTYPE, which could make a small file expand without end; remove it and its entities.")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise DataError(f"{path} is not well-formed XML ({error}); fetch or write it again.") from None


def checked(where: str, value: Any, shape: Any) -> Any:
    """The value, when it has the shape: `str`, `[shape]` for a list of such, `{name: shape, …}` for an object with such fields.

    A list of objects may also be an object of lists, as tables of the hub have it.

    >>> checked("a.json", {"cities": {"name": ["Aarhus", "Bonn"]}}, {"cities": [{"name": str}]})
    {'cities': [{'name': 'Aarhus'}, {'name': 'Bonn'}]}
    """
    kind: Any = shape if isinstance(shape, type) else type(shape)
    if kind is list and isinstance(value, dict) and isinstance(shape[0], dict):
        columns = checked(where, value, {name: [inner] for name, inner in shape[0].items()})
        if len({len(column) for column in columns.values()}) > 1:
            raise DataError(f"{where} has lists of different lengths; fetch the data again.")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not isinstance(value, kind):
        # Never the repr of a list or an object, which can be as long and as deep as the file.
        shown = _NAMES.get(type(value)) if isinstance(value, list | dict) else f"{value!r:.60}"
        raise DataError(f"{where} is {shown}, not {_NAMES[kind]}; fetch or write it again.")
    if isinstance(shape, list):
        return [checked(f"{where}, item {i}", item, shape[0]) for i, item in enumerate(value, 1)]
    if isinstance(shape, dict):
        check_names(where, shape, list(value), "field", "Fetch or write it again.")
        return {name: checked(f"{where}: {name!r}", value[name], inner) for name, inner in shape.items()}
    return value
