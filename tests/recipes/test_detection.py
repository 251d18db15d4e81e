"""What a file says that is to be learned from it."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from loralib.recipes.detection import problem_of, with_problem

MESSAGES = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": MESSAGES}, "chat"),
        ({"instruction": "a", "output": "b"}, "chat"),
        ({"prompt": "a", "completion": "b"}, "chat"),
        ({"text": "a"}, "chat"),
        ({"context": "a", "completion": "b"}, "generation"),
        ({"text": "a", "label": "b"}, None),
        ({"other": 1}, None),
        ([1], None),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_by_the_first_row(row: Any, problem: str | None, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{ending}"
    text = f"\n{json.dumps(row)}\nnot JSON\n".encode()
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    assert problem_of(str(path)) == problem
    expected = {"data": str(path), "problem": problem} if problem else {"data": str(path)}
    assert with_problem({"data": str(path)}) == expected


def test_what_an_option_says_stays(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": MESSAGES}))
    for values in ({"problem": "generation"}, {"task": "mnli"}):
        assert with_problem({"data": str(path), **values}) == {"data": str(path), **values}


def test_files_that_cannot_be_read_are_left_to_their_reader(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_bytes(b"\xff{")
    (tmp_path / "broken.jsonl.gz").write_bytes(b"no gzip")
    for name in ("none.jsonl", "broken.jsonl", "broken.jsonl.gz", "data.tsv", "org/name"):
        assert problem_of(str(tmp_path / name)) is None
    assert with_problem({"task": "mnli"}) == {"task": "mnli"}


def test_options_that_name_columns_or_a_layout(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "a", "sentiment": 1}))
    labelled = {"data": str(path), "label_column": "sentiment"}
    assert with_problem(labelled) == labelled
    for data in ("rows.csv", "org/name"):
        assert with_problem({"data": data, "layout": "prompt"}) == {"data": data, "layout": "prompt", "problem": "chat"}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("prompt,completion", "chat"),
        ("text", None),
        ("text,label", None),
        ("context,completion", None),
        ('"', None),
        ("", None),
    ],
)
def test_by_the_header_of_a_delimited_file(header: str, problem: str | None, tmp_path: Path) -> None:
    for ending, between in (("csv", ","), ("tsv", "\t")):
        (tmp_path / f"data.{ending}").write_text(header.replace(",", between) + "\na\n")
        assert problem_of(str(tmp_path / f"data.{ending}")) == problem
