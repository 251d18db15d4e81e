"""JSON and XML documents from strangers, and the shapes that their values must have."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from loralib.errors import DataError
from loralib.recipes.nlg import documents
from loralib.recipes.nlg.triples import read_webnlg


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"a": ' * 100_000])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a.json is not JSON"):
        read_webnlg(tmp_path / "a.json")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_documents_are_read_plain_and_zipped(suffix: str, tmp_path: Path) -> None:
    for name, content in (("a.json", b'{"\xc3\xa4": [1]}'), ("a.xml", "<a b='ä'/>".encode())):
        (tmp_path / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    assert documents.read_json(tmp_path / f"a.json{suffix}") == {"ä": [1]}
    root = documents.read_xml(tmp_path / f"a.xml{suffix}")
    assert (root.tag, root.attrib) == ("a", {"b": "ä"})


@pytest.mark.parametrize("content", ["", "<a>", "<a></b>", "text"])
def test_xml_that_is_not_well_formed_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(DataError, match=r"a\.xml is not well-formed XML"):
        documents.read_xml(tmp_path / "a.xml")


@pytest.mark.parametrize("before", ["", '<?xml version="1.0"?>\n'])
def test_a_doctype_is_refused_before_anything_is_expanded(before: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(before + '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')
    with pytest.raises(DataError, match=r"a\.xml has a DOCTYPE"):
        documents.read_xml(tmp_path / "a.xml")


SHAPE = {"cities": [{"name": str, "near": [str]}]}


def test_values_of_the_shape_are_returned_without_further_fields() -> None:
    value = {"cities": [{"near": ["b"], "name": "a", "more": 1}], "other": None}
    assert documents.checked("x", value, SHAPE) == {"cities": [{"name": "a", "near": ["b"]}]}
    assert documents.checked("x", {"cities": []}, SHAPE) == {"cities": []}
    assert documents.checked("x", {"cities": {"name": ["a", "c"], "near": [["b"], []]}}, SHAPE) == {
        "cities": [{"name": "a", "near": ["b"]}, {"name": "c", "near": []}]
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "x is a list, not an object"),
        ("text" * 50, "x is '.{1,60}, not an object"),
        ({}, "x has no field 'cities'"),
        ({"cities": "a"}, "x: 'cities' is 'a', not a list"),
        ({"cities": ["a"]}, "x: 'cities', item 1 is 'a', not an object"),
        ({"cities": [{"name": 5, "near": []}]}, "x: 'cities', item 1: 'name' is 5, not text"),
        ({"cities": [{"name": "a", "near": ["b", None]}]}, "item 1: 'near', item 2 is None, not text"),
        ({"cities": [{"name": {"a": 1}, "near": []}]}, "'name' is an object, not text"),
        ({"cities": {"name": ["a", "b"], "near": [["b"]]}}, "x: 'cities' has lists of different lengths"),
    ],
)
def test_values_of_another_shape_are_told_with_their_place(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        documents.checked("x", value, SHAPE)
