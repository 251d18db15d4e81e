"""Data of your own are read line by line, or refused with one sentence that names the line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from loralib.errors import DataError
from loralib.recipes.nlg.examples import example, read_jsonl


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_jsonl_file_gives_inputs_with_one_or_several_texts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"context": "a", "completion": "One. "},
        "\n",
        {"context": "b", "completion": ["Two.", "2"], "category": "seen"},
        {"context": "a", "completion": ["Ein."], "category": None, "other": 1},
    )
    expected = [example("a", ["One. ", "Ein."]), example("b", ["Two.", "2"], "seen")]
    assert read_jsonl(path).to_list() == expected
    zipped = tmp_path / "A.JSONL.GZ"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read_jsonl(zipped).to_list() == expected


def test_fields_of_a_jsonl_file_can_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"q": "a", "refs": ["b"], "topic": "city", "category": 5})
    assert read_jsonl(path, "q", "refs", "topic").to_list() == [example("a", ["b"], "city")]


@pytest.mark.parametrize(
    ("content", "category", "message"),
    [
        (
            '{"context": "a"}',
            None,
            "a.jsonl, line 1 has no column 'completion'; it has 'context'.* Rename one, or name",
        ),
        ('{"context": "a", "completion": "b"}', "topic", "line 1 has no column 'topic'; it has 'context', 'completion'"),
        ('{"context": "a", "completion": []}', None, "line 1: 'completion' is an empty list; give at least one text"),
        ('{"context": "a", "completion": ["b", " "]}', None, "line 1: 'completion' is empty"),
        ('{"context": "", "completion": "b"}', None, "line 1: 'context' is empty"),
        ('{"context": "a", "completion": 5}', None, "line 1: 'completion' is 5, not text"),
        ('{"context": ["a"], "completion": "b"}', None, "line 1: 'context' is a list, not text"),
        ('{"context": "a", "completion": {"b": 1}}', None, "line 1: 'completion' is an object, not text"),
        ('{"context": "a", "completion": "b", "category": true}', None, "line 1: 'category' is True, not text"),
        ('\n{"context": oh}', None, "line 2 is not JSON"),
        ("[" * 100_000, None, "line 1 is not JSON"),
        ("[1]", None, "line 1 is not a JSON object"),
        ("", None, "a.jsonl has no input with a text"),
    ],
)
def test_a_jsonl_file_that_cannot_serve_is_refused(tmp_path: Path, content: str, category: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_jsonl(write(tmp_path / "a.jsonl", content), category=category)


def test_a_jsonl_file_that_is_not_there_or_is_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl does not exist; give the path of a .jsonl file \(or .gz of one\)"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"a.json is not a .jsonl file \(or .gz of one\); convert it to one"):
        read_jsonl(write(tmp_path / "a.json", "{}"))
