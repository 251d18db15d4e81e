"""WebNLG is read with the counts of its publishers, as the paper's scripts format it, from JSON and XML alike."""

import functools
import gzip
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loralib.errors import DataError
from loralib.recipes.nlg.examples import example, grouped
from loralib.recipes.nlg.triples import SEEN_CATEGORIES, read_webnlg
from peers import data
from recipes.nlg.conftest import pairs_of, texts_of

# split: entries, texts; and of those, what the data call good
COUNTS = {"train": (6940, 18102, 6935, 18025), "dev": (872, 2268, 871, 2258), "test": (1862, 4928, 1862, 4928)}


@functools.cache
def read(split: str, only_good: bool = True) -> Any:
    return read_webnlg(data("webnlg", f"{split}.json.gz"), only_good=only_good)


@functools.cache
def entries_of(split: str) -> list[dict[str, Any]]:
    with gzip.open(data("webnlg", f"{split}.json.gz"), "rt", encoding="utf-8") as file:
        return [next(iter(entry.values())) for entry in json.load(file)["entries"]]


def written_plainly(entry: dict[str, Any]) -> str:
    line = ""
    for triple in entry["modifiedtripleset"]:
        line += (" | " if line else "") + triple["subject"] + " : " + triple["property"] + " : " + triple["object"]
    return line


@pytest.mark.parametrize("split", COUNTS)
def test_entries_and_texts(split: str) -> None:
    entries, texts, good_entries, good_texts = COUNTS[split]
    every, good = read(split, only_good=False), read(split)
    assert (len(every), len(texts_of(every))) == (entries, texts)
    assert (len(good), len(texts_of(good))) == (good_entries, good_texts)
    assert every["context"] == [written_plainly(entry) for entry in entries_of(split)]
    assert pairs_of(good) == [
        (written_plainly(entry), text["lex"])
        for entry in entries_of(split)
        for text in entry["lexicalisations"]
        if text["comment"] == "good"
    ]


def test_the_seen_categories_are_those_of_the_training_data() -> None:
    assert {entry["category"] for entry in entries_of("train")} == SEEN_CATEGORIES
    assert set(read("train")["category"]) == {"seen"}


def test_parts_of_the_test_set() -> None:
    test = read("test")
    assert Counter(test["category"]) == {"seen": 971, "unseen": 891}
    assert grouped(test.to_list()) == test.to_list()


def skeleton(text: str) -> str:
    """What is left of a text after any tokenising and lower-casing, and after the organisers' folding of letters to ASCII."""
    one_by_one = text.lower().replace("ß", "ss").replace("ø", "o").replace("\N{LATIN SMALL LETTER DOTLESS I}", "i")
    folded = unicodedata.normalize("NFKD", one_by_one)
    return re.sub(r"[^a-z0-9]", "", folded.encode("ascii", "ignore").decode())


@pytest.mark.parametrize(("track", "part"), [("all", None), ("old", "seen"), ("new", "unseen")])
def test_the_organisers_references_have_the_same_rows_in_the_same_order(track: str, part: str | None) -> None:
    test = [row for row in read("test").to_list() if part in (None, row["category"])]
    folder = data("webnlg", "system_outputs", "references")
    lex = [(folder / f"gold-{track}-cat-reference{i}.lex").read_text(encoding="utf-8").split("\n") for i in range(3)]
    assert [len(lines) for lines in lex] == [len(test) + 1] * 3  # each ends in a line feed
    rows = zip(*(lines[:-1] for lines in lex), strict=True)
    # The organisers kept up to three texts of each.
    assert [[skeleton(text) for text in texts[:3]] for texts in (row["references"] for row in test)] == [
        [skeleton(text) for text in row if text] for row in rows
    ]


# --- JSON and XML -----------------------------------------------------------------------------------------------------


def as_xml(entries: list[dict[str, Any]]) -> bytes:
    """The entries in the challenge's XML."""
    benchmark = ET.Element("benchmark")
    into = ET.SubElement(benchmark, "entries")
    for entry in entries:
        element = ET.SubElement(into, "entry", category=entry["category"], eid="Id1")
        ET.SubElement(ET.SubElement(element, "originaltripleset"), "otriple").text = "a | b | c"
        triples = ET.SubElement(element, "modifiedtripleset")
        for triple in entry["modifiedtripleset"]:
            ET.SubElement(triples, "mtriple").text = f"{triple['subject']} | {triple['property']} | {triple['object']}"
        for text in entry["lexicalisations"]:
            ET.SubElement(element, "lex", comment=text["comment"], lid="Id1").text = text["lex"]
    ET.indent(benchmark)
    return bytes(ET.tostring(benchmark, encoding="utf-8", xml_declaration=True))


@pytest.mark.parametrize(("split", "only_good"), [("train", True), ("dev", False), ("test", True)])
def test_json_and_xml_give_equal_examples(split: str, only_good: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.xml.gz"
    path.write_bytes(gzip.compress(as_xml(entries_of(split)), 1))
    assert read_webnlg(path, only_good=only_good).to_list() == read(split, only_good).to_list()


def test_a_folder_gives_all_its_xml_files_in_order(tmp_path: Path) -> None:
    entries = entries_of("dev")
    for folder, part in (("1triples", entries[:3]), ("2triples", entries[3:5])):
        (tmp_path / "dev" / folder).mkdir(parents=True)
        (tmp_path / "dev" / folder / "Airport.xml").write_bytes(as_xml(part))
    (tmp_path / "dev" / "README.txt").write_text("not data")
    expected = read("dev").to_list()[:5]
    assert read_webnlg(tmp_path / "dev").to_list() == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no .xml file in it; give the folder of the challenge's files"):
        read_webnlg(tmp_path / "empty")


TRIPLE = {"subject": "A_b", "property": "isA", "object": '"C, d"'}
LEX = [{"comment": "good", "lex": "A is C.", "lang": ""}]
ENTRY: dict[str, Any] = {"category": "City", "modifiedtripleset": [TRIPLE], "lexicalisations": LEX}


def test_underscores_and_quotes_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"entries": [{"1": ENTRY}]}))
    assert read_webnlg(tmp_path / "a.json").to_list() == [example('A_b : isA : "C, d"', ["A is C."], "seen")]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in ENTRY.items() if key != name}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a.json is a list, not an object"),
        ({"entry": []}, "a.json has no field 'entries'; it has 'entry'"),
        ({"entries": {}}, "a.json: 'entries' is an object, not a list"),
        ({"entries": []}, "a.json has no input with a text"),
        ({"entries": [{"1": ENTRY}, 5]}, "a.json, entry 2 is 5, not an object"),
        ({"entries": [ENTRY]}, "entry 1 has 3 fields, expected one: its number"),
        ({"entries": [{"1": without("category")}]}, "entry 1 has no field 'category'"),
        ({"entries": [{"1": without("lexicalisations")}]}, "entry 1 has no field 'lexicalisations'"),
        ({"entries": [{"1": without("modifiedtripleset")}]}, "entry 1 has no field 'modifiedtripleset'"),
        ({"entries": [{"1": ENTRY | {"modifiedtripleset": []}}]}, "entry 1 has no triples; give it at least one"),
        (
            {"entries": [{"1": ENTRY | {"modifiedtripleset": [{"subject": "a"}]}}]},
            "item 1 has no field 'property'",
        ),
        ({"entries": [{"1": ENTRY | {"lexicalisations": [{"lex": "a"}]}}]}, "'lexicalisations', item 1 has no field 'comment'"),
        ({"entries": [{"1": ENTRY | {"lexicalisations": [{"comment": "good", "lex": 5}]}}]}, "'lex' is 5, not text"),
        ({"entries": [{"1": ENTRY | {"lexicalisations": []}}]}, "a.json has no input with a text"),
    ],
)
def test_json_that_cannot_serve_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=message):
        read_webnlg(tmp_path / "a.json")


def xml(entry: str) -> str:
    return f"<benchmark><entries><entry {entry}</entry></entries></benchmark>"


ONE = "<modifiedtripleset><mtriple>a | b | c</mtriple></modifiedtripleset>"
LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.xml is not well-formed XML"),
        ("<benchmark>", "a.xml is not well-formed XML"),
        ("<benchmark>&b;</benchmark>", "a.xml is not well-formed XML"),
        (f"<?xml version='1.0'?>{LAUGHS}<benchmark>&b;</benchmark>", "a.xml has a DOCTYPE, which could make"),
        ("<" + "a><" * 100_000 + "/a>", "a.xml is not well-formed XML"),
        ("<a>" * 50_000 + "</a>" * 50_000, "a.xml begins with <a>; expected <benchmark>"),
        ("<benchmark/>", "a.xml begins with <benchmark>; expected <benchmark> with <entries>"),
        ("<benchmark><entries/></benchmark>", "a.xml has no input with a text"),
        (xml(f'category="City">{ONE}'), "a.xml has no input with a text"),
        (xml(f"eid='1'>{ONE}"), "a.xml, entry 1 has no attribute 'category'"),
        (xml('category="City">'), "entry 1 has 0 elements <modifiedtripleset>, expected one"),
        (xml(f'category="City">{ONE}{ONE}'), "entry 1 has 2 elements <modifiedtripleset>"),
        (xml('category="City"><modifiedtripleset/>'), "entry 1 has no triples"),
        (xml(f'category="City">{ONE.replace(" | c", "")}'), r"entry 1: 'a \| b' is not a triple; write it as subject"),
    ],
)
def test_xml_that_cannot_serve_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(DataError, match=message):
        read_webnlg(tmp_path / "a.xml")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_doctype_cannot_hide_behind_an_encoding(tmp_path: Path, encoding: str) -> None:
    content = f'<?xml version="1.0" encoding="{encoding}"?>{LAUGHS}<benchmark>é&b;</benchmark>'
    (tmp_path / "a.xml").write_bytes(content.encode(encoding))
    with pytest.raises(DataError, match=r"a.xml cannot be read as UTF-8 text"):
        read_webnlg(tmp_path / "a.xml")


@pytest.mark.parametrize("name", ["a.json.gz", "a.xml.gz"])
def test_a_damaged_gzip_file_is_called_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    with pytest.raises(DataError, match=f"{name} is not a whole gzip file"):
        read_webnlg(tmp_path / name)


def test_a_file_that_is_not_there_or_is_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.json does not exist; give the path of a .json or .xml file"):
        read_webnlg(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"a.txt is not a .json or .xml file \(or .gz of one\)"):
        read_webnlg(tmp_path / "a.txt")
