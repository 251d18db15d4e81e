"""Two runs on one folder: one of them trains, the other changes nothing; and a run that was killed is gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loralib.cli import INTERRUPTED, MISUSED, main
from loralib.errors import RunError
from loralib.recipes import comparison, run_folder
from loralib.storage.temporaries import LOCK
from loralib.train.checkpoints import last_whole_checkpoint

pytestmark = pytest.mark.slow

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def begun(*words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "loralib", *map(str, words)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def options(encoder: Path, reviews: Path, epochs: int) -> list[object]:
    data = ["--data", reviews / "train.tsv", "--eval-data", reviews / "test.tsv"]
    return ["--model", encoder, *data, "--r", 2, "--batch-size", 16, "--num-train-epochs", epochs]


def until(happened: Callable[[], object], *processes: "subprocess.Popen[str]") -> None:
    while not happened():
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)


def contents(folder: Path) -> dict[Path, bytes]:
    """What is there but for the live run's own files, which change: its checkpoints and logs."""
    live = (run_folder.CHECKPOINTS, run_folder.LOGS)
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.relative_to(folder).parts[0] not in live}


def refused(capfd: Any, held: Path, pid: int, *words: object) -> None:
    capfd.readouterr()
    assert main([str(word) for word in words]) == MISUSED
    (*_, shown) = capfd.readouterr().err.splitlines()
    assert f"{held} is being written by process {pid} on " in shown
    assert "Nothing was changed." in shown


def test_of_two_that_begin_at_once_one_is_refused_and_the_other_one_is_whole(
    encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    both = [begun("train", *options(encoder, reviews, 10), "--output", run) for _ in range(2)]
    shown = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, MISUSED], shown
    winner, loser = both[codes.index(0)], codes.index(MISUSED)
    by = f"{run} is being written by process {winner.pid} on "
    assert by in shown[loser] or f"{run} exists and is not empty" in shown[loser]  # had it begun when the other one was done
    assert main(["evaluate", str(run), "--data", str(reviews / "test.tsv")]) == 0
    assert {path.name for path in run.iterdir()} <= run_folder.PARTS


def test_a_live_run_is_left_alone_and_a_killed_one_is_gone_on_with(
    encoder: Path, reviews: Path, tmp_path: Path, capfd: Any
) -> None:
    run = tmp_path / "run"
    words = ["train", *options(encoder, reviews, 30), "--output", run]
    process = begun(*words)
    until(lambda: last_whole_checkpoint(run / run_folder.CHECKPOINTS), process)
    before = contents(run)
    refused(capfd, run, process.pid, "train", "--output", run, "--resume")
    refused(capfd, run, process.pid, *words, "--overwrite")
    refused(capfd, run, process.pid, *words, "--overwrite", "--seeds", 2)
    assert process.poll() is None
    assert contents(run) == before
    process.kill()
    process.communicate()
    assert (run / LOCK).exists()
    (run / f".config.yaml.{process.pid}.tmp").touch()  # what a kill at another time leaves
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert (run / run_folder.METRICS).exists()
    assert {path.name for path in run.iterdir()} <= run_folder.PARTS


def test_a_run_ends_with_the_comparison_that_was_killed_and_nobody_trains_in_its_folder_meanwhile(
    encoder: Path, reviews: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["compare", *options(encoder, reviews, 400), "--methods", "lora", "--output", out]
    process = begun(*words)
    until(lambda: last_whole_checkpoint(out / "lora" / run_folder.CHECKPOINTS), process)
    child = json.loads((out / "lora" / LOCK).read_text())["pid"]
    refused(capfd, out, process.pid, *words, "--resume")
    refused(capfd, out / "lora", child, "train", "--output", out / "lora", "--resume")
    os.kill(child, signal.SIGSTOP)  # so that it cannot end yet
    process.kill()
    process.wait()
    refused(capfd, out / "lora", child, *words, "--resume")
    refused(capfd, out / "lora", child, *words, "--overwrite")
    os.kill(child, signal.SIGCONT)
    until(lambda: not Path(f"/proc/{child}").exists())
    assert "lora/checkpoints" in process.communicate()[1]  # what the run itself said last: where it can be gone on with
    assert last_whole_checkpoint(out / "lora" / run_folder.CHECKPOINTS)
    assert not (out / "lora" / LOCK).exists()
    assert not (out / "lora" / run_folder.METRICS).exists()
    monkeypatch.setattr(comparison, "wait_for", lambda given: resumed.append(given[-1]) or INTERRUPTED)
    resumed: list[str] = []
    assert main([*map(str, words), "--resume"]) == INTERRUPTED
    assert resumed == ["--resume"]


def test_what_a_killed_merge_into_a_runs_folder_left_is_not_in_the_way(tmp_path: Path) -> None:
    gone = "2147483647"  # no process has this number
    run_folder.RUN.begin(tmp_path)
    for name in (".merged.lock", f".merged.{gone}.tmp/model.safetensors", f".merged.{gone}.tmp/.loralib.json", "config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with run_folder.RUN.alone_in(tmp_path):
        run_folder.RUN.check_free(tmp_path, overwrite=True, resume=False)
        assert not (tmp_path / f".merged.{gone}.tmp").exists()
    (tmp_path / ".thesis.lock").touch()
    with pytest.raises(RunError, match=r"holds what no run wrote \(.thesis.lock\)"):
        run_folder.RUN.check_free(tmp_path, overwrite=True, resume=False)
