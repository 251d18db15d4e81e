"""`loralib predict`: texts as words or lines, and what contradicts itself is refused before a model is loaded."""

import io
import json
import re
from pathlib import Path

import pytest

from loralib.cli import main

pytest_plugins = ["recipes.conftest"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert main(["predict", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_text_is_a_line_with_its_class_and_probability(untrained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a good film", "a dull soup"]
    found = [json.loads(line) for line in said(capsys, str(untrained_run), "--json", *texts)]
    assert [row["text"] for row in found] == texts
    assert {row["prediction"] for row in found} <= {"blame", "praise"}
    plain = [f"{row['prediction']} ({row['probability']:.2f})  {row['text']}" for row in found]
    assert said(capsys, str(untrained_run), *texts) == plain


def test_lines_of_standard_input_are_texts(
    untrained_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "a good film\r\n\ncafé\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    found = [json.loads(line)["text"] for line in said(capsys, str(untrained_run), "--json")]
    assert found == ["a good film", "", "café"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test", "a text"], "--split predicts a test set into files; leave out texts, --pair and --json"),
        (["--split", "test", "--json"], "--split predicts a test set into files"),
        (["--split", "dev"], "--split"),
        (["--data-dir", "glue", "a text"], "--data-dir and --output belong to --split test"),
        (["-o", "out", "a text"], "--data-dir and --output belong to --split test"),
        (["--split", "test", "-o", ""], "--output: the value is empty; leave it out"),
        (["--split", "test", "--data-dir="], "--data-dir: the value is empty"),
        (["--split", "test"], "was trained on .*train.tsv, not on a GLUE task"),
        (["a text", "--pair", "b"], "takes single texts, no pairs"),
    ],
)
def test_words_that_contradict_are_refused(
    words: list[str], message: str, untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["predict", str(untrained_run), *words]) == 2
    assert re.search(message, capsys.readouterr().err)
