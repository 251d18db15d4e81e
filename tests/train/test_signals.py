"""SIGTERM ends what Ctrl-C ends, in the same way, here and in the processes that were started."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from loralib.cli import INTERRUPTED, info, main
from loralib.train.checkpoints import last_whole_checkpoint
from loralib.train.signals import handling, interrupt

pytest_plugins = ["recipes.conftest"]

BOTH = (signal.SIGINT, signal.SIGTERM)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in BOTH]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", BOTH)
def test_every_command_ends_with_one_code_and_gives_the_signals_back(number: Any, monkeypatch: Any, capsys: Any) -> None:
    before, cleaned = handlers(), []

    def work(words: Any) -> int:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)  # while it cleans up
            cleaned.append(True)
        return 0

    monkeypatch.setattr(info, "run", work)
    assert main(["info", "x"]) == INTERRUPTED
    assert capsys.readouterr().err == "loralib: interrupted.\n"
    assert cleaned == [True]
    assert handlers() == before


def test_signals_that_are_ignored_stay_ignored() -> None:
    previous = [signal.signal(number, signal.SIG_IGN) for number in BOTH]
    try:
        with handling(interrupt, only_usual=True):
            for number in BOTH:
                signal.raise_signal(number)
        assert handlers() == [signal.SIG_IGN, signal.SIG_IGN]
    finally:
        for number, handler in zip(BOTH, previous, strict=True):
            signal.signal(number, handler)


def test_other_threads_have_no_signals_to_handle() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with handling(interrupt):
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def ends(pid: int, seconds: float = 30) -> bool:
    """Whether a process ends within so many seconds."""
    for _ in range(round(seconds / 0.05)):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("to_group", [False, True])
def test_a_comparison_leaves_no_process_and_goes_on(
    number: Any, to_group: bool, encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    """to_group: as a terminal does, which gives Ctrl-C to the run, too."""
    data = ["--data", str(reviews / "train.tsv"), "--eval-data", str(reviews / "test.tsv"), "--num-train-epochs", "40"]
    how = ["--model", str(encoder), *data, "--r", "2", "--methods", "lora", "--output", str(tmp_path / "out")]
    words = [sys.executable, "-m", "loralib", "compare", *how]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    run = tmp_path / "out" / "lora"
    while last_whole_checkpoint(run / "checkpoints") is None and process.poll() is None:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (os.killpg if to_group else os.kill)(process.pid, number)
    _, shown = process.communicate(timeout=300)
    assert process.returncode == INTERRUPTED
    assert children
    assert not [child for child in children if not ends(int(child))]
    assert "finished runs are kept" in shown
    assert "Traceback" not in shown
    assert last_whole_checkpoint(run / "checkpoints") is not None
    assert not (run / "metrics.json").exists()
