"""Submissions have the form that GLUE's server takes, and nothing else passes the check."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loralib.cli import main
from loralib.errors import DataError
from loralib.recipes.nlu import submission
from loralib.recipes.nlu.glue import TASKS
from loralib.recipes.nlu.submission import FILES
from loralib.recipes.options import TrainOptions
from loralib.recipes.run import train
from peers import data

ROWS = {
    "CoLA": 1_063,
    "SST-2": 1_821,
    "MRPC": 1_725,
    "STS-B": 1_379,
    "QQP": 390_965,
    "MNLI-m": 9_796,
    "MNLI-mm": 9_847,
    "QNLI": 5_463,
    "RTE": 3_000,
    "WNLI": 146,
    "AX": 1_104,
}


def check(path: Path) -> None:
    """Raise `DataError` that says what the server would refuse: the name, the first line, the rows, a prediction."""
    if path.suffix != ".tsv" or path.stem not in FILES:
        raise DataError(f"{path.name} is no file of a submission; those are {', '.join(f'{name}.tsv' for name in FILES)}.")
    (task, _), rows = FILES[path.stem], ROWS[path.stem]
    if not path.is_file():
        raise DataError(f"{path} does not exist; predict the test set of {task} first.")
    header, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if header != submission.HEADER:
        raise DataError(f"{path} begins with {header!r:.60}; expected {submission.HEADER!r}.")
    if len(lines) != rows:
        raise DataError(f"{path} has {len(lines):,} predictions; the test set has {rows:,} rows.")
    for i, line in enumerate(lines):
        number, _, prediction = line.partition("\t")
        if number != str(i):
            raise DataError(f"{path}, line {i + 2}, is numbered {number!r:.20}; expected {i}.")
        if not _is_taken(task, prediction):
            raise DataError(f"{path}, line {i + 2}, predicts {prediction!r:.60}, which {task} does not know.")


def _is_taken(task: str, prediction: str) -> bool:
    if labels := TASKS[task].classes:
        return prediction in labels.values()
    return bool(re.fullmatch(r"[0-9]+(\.[0-9]+)?", prediction)) and 0 <= float(prediction) <= 5


def predictions(name: str) -> list[Any]:
    labels = TASKS[FILES[name][0]].labels
    rows = ROWS[name]
    return [labels[i % len(labels)] if labels else i / 100 - 1 for i in range(rows)]


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_passes_the_check(name: str, tmp_path: Path) -> None:
    path = submission.write(tmp_path / "new", name, predictions(name))
    check(path)
    header, first, *_ = path.read_text().split("\n")
    assert header == "index\tprediction"
    assert first == "0\t" + {"stsb": "0.000", "mnli": "entailment", "qnli": "entailment", "rte": "entailment"}.get(
        FILES[name][0], "0"
    )


def test_every_task_is_answered() -> None:
    assert {task for task, _ in FILES.values()} == set(TASKS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("index", "id", 1), "begins with 'id"),
        (lambda text: text.replace("\n3\t", "\n4\t", 1), "line 5, is numbered '4'; expected 3"),
        (lambda text: text + "146\t0\n", "has 147 predictions; the test set has 146 rows"),
        (lambda text: text.replace("\n3\t1", "\n3\tyes", 1), "line 5, predicts 'yes', which wnli does not know"),
        (lambda text: text.replace("\t", ","), "begins with 'index,prediction'"),
    ],
)
def test_what_the_server_would_refuse_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = submission.write(tmp_path, "WNLI", predictions("WNLI"))
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        check(path)


@pytest.mark.parametrize(("number", "taken"), [("5.000", True), ("0", True), ("5.1", False), ("-1", False), ("nan", False)])
def test_scores_are_numbers_from_0_to_5(tmp_path: Path, number: str, taken: bool) -> None:
    path = submission.write(tmp_path, "STS-B", predictions("STS-B"))
    path.write_text(path.read_text().replace("\n0\t0.000", f"\n0\t{number}", 1))
    if taken:
        check(path)
    else:
        with pytest.raises(DataError, match="line 2, predicts"):
            check(path)


@pytest.mark.parametrize(("name", "value"), [("STS-B", float("nan")), ("STS-B", "high"), ("RTE", "maybe"), ("CoLA", "1")])
def test_a_prediction_that_the_task_does_not_know_is_not_written(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(DataError):
        submission.write(tmp_path, name, [value])
    assert not list(tmp_path.iterdir())


def test_a_file_of_no_submission_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no file of a submission; those are CoLA\.tsv"):
        check(tmp_path / "cola.tsv")
    with pytest.raises(DataError, match="predict the test set of cola first"):
        check(tmp_path / "CoLA.tsv")


@pytest.fixture(scope="module")
def wnli_run(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wnli") / "run"
    options = TrainOptions(model=str(encoder), task="wnli", data_dir=str(data("glue")), num_train_epochs=1, max_train_rows=32)
    train(options, folder, console=Console(file=io.StringIO()))
    return folder


def test_a_run_predicts_its_test_set(wnli_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(wnli_run), "--split", "test"]) == 0
    assert "146 rows of" in capsys.readouterr().out
    check(wnli_run / "submission" / "WNLI.tsv")
    given = ["--data-dir", str(data("glue")), "-o", str(tmp_path / "there")]
    assert main(["predict", str(wnli_run), "--split", "test", *given]) == 0
    assert (tmp_path / "there" / "WNLI.tsv").read_text() == (wnli_run / "submission" / "WNLI.tsv").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "test", "a text"], "leave out texts"),
        (["--split", "test", "--json"], "leave out texts, --pair and --json"),
        (["-o", "there", "a text"], "belong to --split test"),
        (["--split", "dev"], "is not one of test"),
        (["--split", "test", "--data-dir", "nowhere"], "nowhere/WNLI/test.tsv does not exist"),
    ],
)
def test_words_that_contradict_are_refused(
    wnli_run: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    capsys.readouterr()
    assert main(["predict", str(wnli_run), *more]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_run_of_no_glue_task_has_no_test_set(encoder: Path, reviews: Path, tmp_path: Path, capsys: Any) -> None:
    options = TrainOptions(model=str(encoder), data=str(reviews / "train.tsv"), num_train_epochs=1, max_train_rows=32)
    train(options, tmp_path / "run", console=Console(file=io.StringIO()))
    assert main(["predict", str(tmp_path / "run"), "--split", "test"]) == 2
    assert "not on a GLUE task, and has no test set to predict" in capsys.readouterr().err
