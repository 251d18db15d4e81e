"""The benchmark of whole commands: both contenders learn from the same rows, and what is computed of their times."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from peers import data

sys.path.append(str(Path(__file__).parent.parent))  # `benchmarks` is not a part of what is installed

from benchmarks import job, provenance

pytest_plugins = ["recipes.conftest", "recipes.chat.conftest"]


def row(name: str, seed: int, pace: float) -> job.Row:
    return {"job": "sst2", "contender": name, "seed": seed, "seconds": 1 / pace, "rows_per_second": pace, "score": 0.8}


def test_the_pace_is_compared_seed_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    paces = {job.OURS: (2.0, 30.0, 8.0), job.PEFT: (1.0, 10.0, 4.0)}
    rows = [row(name, seed, pace) for name, of in paces.items() for seed, pace in enumerate(of)]
    assert job.pace(rows, "sst2") == 2
    Console(width=120).print(job.table(rows))
    assert "0.8000" in capsys.readouterr().out


def test_the_rows_of_the_other_job_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "RESULTS", tmp_path)
    job.record([{**row(job.OURS, 0, 2.0), "around": 0.01}, row(job.PEFT, 0, 1.0)], {"commit": "abc"})
    job.record([{**row(job.OURS, 0, 3.0), "job": "chat"}], {"commit": "def"})
    path = job.record([{**row(job.OURS, 0, 4.0), "around": 0.02}], {"commit": "123"})
    found = [
        tuple(read.get(name) for name in ("job", "rows_per_second", "around", "commit")) for read in provenance.read_rows(path)
    ]
    assert found == [("chat", 3, None, "def"), ("sst2", 4, 0.02, "123")]


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="ended with 3:\nno luck"):
        job.run([sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"])


def test_without_data_one_sentence_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LORALIB_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["job"])
    assert job.main() == 2
    assert "set LORALIB_DATA" in capsys.readouterr().err


@pytest.mark.slow
def test_both_jobs_by_both_contenders(encoder: Path, chatter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "RESULTS", tmp_path)
    few = {"rows": 24, "validation": 8, "epochs": 1, "batch_size": 8, "eval_batch_size": 8}
    (tmp_path / "sst2").mkdir()
    rows = job.measure(replace(job.SST2, model=str(encoder), **few), data(), tmp_path / "sst2", 1, Console())
    assert [(found["contender"], found["train_rows"]) for found in rows] == [(job.OURS, 24), (job.PEFT, 24)]
    assert all(0 <= found["score"] <= 1 and found["seconds"] > 0 for found in rows)
    assert 0 < rows[0]["bare_seconds"] < rows[0]["train_seconds"]
    assert rows[0]["around"] < 1
    (tmp_path / "chat").mkdir()
    chat = replace(job.CHAT, model=str(chatter), max_length=512, **few)
    rows += job.measure(chat, None, tmp_path / "chat", 1, Console())
    assert [(found["contender"], found["train_rows"]) for found in rows[2:]] == [(job.OURS, 24), (job.PEFT, 24)]
    assert all(found["score"] > 1 for found in rows[2:])
    job.record(rows, {"commit": "0"})
    assert len(provenance.read_rows(tmp_path / "job.csv")) == 4
