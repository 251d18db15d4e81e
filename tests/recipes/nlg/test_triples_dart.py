"""DART is read with the counts of its publishers, as the paper's scripts format it, from JSON and XML alike."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from loralib.errors import DataError
from loralib.recipes.nlg.examples import collected, example, grouped
from loralib.recipes.nlg.triples import read_dart
from peers import data
from recipes.nlg.conftest import pairs_of, texts_of


def dev() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(data("dart", "dart-v1.1.1-full-dev.json").read_text(encoding="utf-8"))
    return entries


def test_the_development_set() -> None:
    read = read_dart(data("dart", "dart-v1.1.1-full-dev.json"))
    merged = collected("x", grouped(read.to_list()))
    assert (len(read), len(texts_of(read)), len(merged)) == (2768, 6980, 2721)
    expected = []
    for entry in dev():
        line = " | ".join(f"{subject} : {relation.lower()} : {value}" for subject, relation, value in entry["tripleset"])
        expected.extend((line, annotation["text"]) for annotation in entry["annotations"])
    assert pairs_of(read) == expected
    assert texts_of(merged) != texts_of(read)
    assert sorted(pairs_of(merged)) == sorted(pairs_of(read))


def test_the_test_set_has_the_rows_of_the_published_references() -> None:
    read = read_dart(data("dart", "dart-v1.1.1-full-test.xml"))
    assert (len(read), len(texts_of(read))) == (5097, 12551)  # 12,552 with an empty one
    lex = [data("dart", f"reference{i}.lex").read_text(encoding="utf-8").split("\n")[:5097] for i in range(3)]
    published = [[text for text in texts if text] for texts in zip(*lex, strict=True)]
    assert [len(texts) for texts in published] == [min(3, len(texts)) for texts in read["references"]]

    def letters(text: str) -> str:
        return "".join(character for character in text.lower() if character.isalnum())

    assert [letters(texts[0]) for texts in published] == [letters(texts[0]) for texts in read["references"]]


def test_names_keep_their_case_and_their_spaces() -> None:
    contexts = read_dart(data("dart", "dart-v1.1.1-full-test.xml"))["context"]
    assert contexts[0] == (
        "Hawaii Five-O : notes : Episode: The Flight of the Jewels | [TABLECONTEXT] : [title] : Jeff Daniels"
        " | [TABLECONTEXT] : title : Hawaii Five-O"
    )
    assert any(" sanctuary  : written_by : shonda rhimes" in context for context in contexts)


def as_xml(entries: list[dict[str, Any]]) -> bytes:
    """The entries in DART's XML."""
    benchmark = ET.Element("benchmark")
    into = ET.SubElement(benchmark, "entries")
    for entry in entries:
        element = ET.SubElement(into, "entry", category="MISC", eid="Id1")
        triples = ET.SubElement(element, "modifiedtripleset")
        for triple in entry["tripleset"]:
            ET.SubElement(triples, "mtriple").text = " | ".join(triple)
        for annotation in entry["annotations"]:
            ET.SubElement(element, "lex", comment=annotation["source"]).text = annotation["text"]
    ET.indent(benchmark)
    return bytes(ET.tostring(benchmark, encoding="utf-8", xml_declaration=True))


def test_json_and_xml_give_equal_examples(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(as_xml(dev()))
    assert read_dart(tmp_path / "a.xml").to_list() == read_dart(data("dart", "dart-v1.1.1-full-dev.json")).to_list()


ENTRY: dict[str, Any] = {"tripleset": [["A b", "IS_A", "C"]], "annotations": [{"source": "x", "text": "A b is C. "}]}


def test_texts_of_any_source_are_kept_but_for_empty_ones(tmp_path: Path) -> None:
    texts = [{"source": "y", "text": " "}, {"source": "z", "text": "It is."}]
    entries = [
        ENTRY,
        {"tripleset": [["A", "b", "c"]], "annotations": texts},
        {"tripleset": [["A", "b", "d"]], "annotations": []},
    ]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    expected = [example("A b : is_a : C", ["A b is C. "]), example("A : b : c", ["It is."])]
    assert read_dart(tmp_path / "a.json").to_list() == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "a.json is an object, not a list"),
        ([], "a.json has no input with a text"),
        ([ENTRY, "b"], "a.json, entry 2 is 'b', not an object"),
        ([{"annotations": []}], "entry 1 has no field 'tripleset'; it has 'annotations'"),
        ([{"tripleset": [["a", "b", "c"]]}], "entry 1 has no field 'annotations'"),
        ([ENTRY | {"tripleset": []}], "entry 1 has no triples"),
        (
            [ENTRY | {"tripleset": [["a", "b"]]}],
            r"entry 1: 'a \| b' is not a triple; write it as subject \| property \| object",
        ),
        ([ENTRY | {"tripleset": [["a", "b", 3]]}], "entry 1: 'tripleset', item 1, item 3 is 3, not text"),
        ([ENTRY | {"tripleset": ["abc"]}], "entry 1: 'tripleset', item 1 is 'abc', not a list"),
        ([ENTRY | {"annotations": [{"text": "a"}]}], "entry 1: 'annotations', item 1 has no field 'source'"),
        ([ENTRY | {"annotations": ["a"]}], "entry 1: 'annotations', item 1 is 'a', not an object"),
        ([ENTRY | {"annotations": {"source": ["x", "y"], "text": ["a"]}}], "'annotations' has lists of different lengths"),
        ([ENTRY | {"annotations": 5}], "entry 1: 'annotations' is 5, not a list"),
    ],
)
def test_json_that_cannot_serve_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=message):
        read_dart(tmp_path / "a.json")


def test_a_file_that_is_not_there_or_is_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.xml does not exist; give the path of a .json or .xml file"):
        read_dart(tmp_path / "none.xml")
    with pytest.raises(DataError, match=r"a.jsonl is not a .json or .xml file"):
        read_dart(tmp_path / "a.jsonl")
