"""`loralib evaluate`: the metrics of a run on labelled text, as a table or as JSON."""

import json
from pathlib import Path

import pytest

from loralib.cli import main
from loralib.recipes.nlu import predictor

pytest_plugins = ["recipes.conftest"]


def test_the_table_and_json_say_what_the_run_scores(
    untrained_run: Path, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(reviews / "test.tsv")
    opened = predictor.open_run(untrained_run)
    expected = opened.evaluate(predictor.read_rows(opened.options, path, {}))
    capsys.readouterr()
    assert main(["evaluate", str(untrained_run), "--data", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found.pop("data"), found.pop("rows")) == (path, 48)
    assert found == pytest.approx(expected)
    assert main(["evaluate", str(untrained_run), "--data", path]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown and f"{value:.4f}" in shown for name, value in expected.items())
    assert "48 rows of " in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data"),
        (["--data", "none.tsv"], "none.tsv does not exist"),
        (["--data", "imdb"], "'imdb' is not a .tsv"),
        (["--data", "{rows}", "--label-column", "lable"], "no column 'lable'"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(
    words: list[str], message: str, untrained_run: Path, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(untrained_run), *(word.format(rows=reviews / "test.tsv") for word in words)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert message in said.err
