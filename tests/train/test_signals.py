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
from loralib.recipes import comparison
from loralib.train.callbacks import StopOnInterrupt
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


def test_ctrl_c_that_comes_as_both_signals_is_one_and_a_second_ends_at_once(capfd: Any) -> None:
    stop = StopOnInterrupt()
    for number in BOTH:
        stop._request(number, None)
    assert capfd.readouterr().err.count("Finishing this step") == 1
    for number in BOTH:
        with pytest.raises(KeyboardInterrupt):
            stop._request(number, None)


CHILD = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def end(number, frame):
    (folder / "got").write_text(str(number))
    sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGTERM, end)
(folder / "ready").touch()
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("code", [0, 1, INTERRUPTED])
@pytest.mark.parametrize("number", BOTH)
def test_a_signal_to_this_process_alone_ends_the_one_it_waits_for(number: Any, code: int, tmp_path: Path) -> None:
    def press() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before, thread = handlers(), threading.Thread(target=press)
    thread.start()
    found = comparison.wait_for([sys.executable, "-c", CHILD, str(tmp_path), str(code)])
    thread.join()
    assert found == comparison.INTERRUPTED
    assert (tmp_path / "got").read_text() == str(int(signal.SIGTERM))
    assert handlers() == before


@pytest.mark.slow
def test_a_process_that_ends_by_itself_gives_its_code() -> None:
    assert [comparison.wait_for([sys.executable, "-c", f"raise SystemExit({code})"]) for code in (0, 2)] == [0, 2]


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
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert "finished runs are kept" in shown
    assert "Traceback" not in shown
    assert last_whole_checkpoint(run / "checkpoints") is not None
    assert not (run / "metrics.json").exists()
