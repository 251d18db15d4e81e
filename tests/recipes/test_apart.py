"""A command in a process of its own: started quickly, ended with the one that started it, and alone with what it needs."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from loralib.recipes.apart import INTERRUPTED, wait_for
from loralib.train import measure

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("interruptible")]

BOTH = (signal.SIGINT, signal.SIGTERM)
CHILD = """
import os, signal, sys, time
from pathlib import Path
folder, code, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
begun_with = set(sys.modules)
def end(number, frame):
    (folder / "got").write_text(str(number))
    sys.exit(code)
signal.signal(signal.SIGTERM, end)
print("to nobody", flush=True)
(folder / "modules").write_text(" ".join(begun_with))
(folder / "place").write_text(os.getcwd())
(folder / "pid").write_text(str(os.getpid()))
time.sleep(seconds)
sys.exit(code)
"""
HUNGRY = """
import sys
from pathlib import Path
from loralib.train import measure
held = bytearray(int(sys.argv[2]))
held[::4096] = b"x" * len(held[::4096])
Path(sys.argv[1]).write_text(str(measure.peak_memory()))
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that says what it met, and ends with a code."""
    (tmp_path / "child_of_test.py").write_text(CHILD)
    (tmp_path / "hungry_of_test.py").write_text(HUNGRY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "child_of_test"


def gone(pid: int, seconds: float = 30) -> bool:
    """Whether a process ends within so many seconds."""
    for _ in range(round(seconds / 0.05)):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_process_that_ends_by_itself_gives_its_code_and_shows_no_output(
    code: int, child: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    assert wait_for([str(tmp_path), str(code), "0"], child) == code
    assert capfd.readouterr().out == ""
    assert (tmp_path / "place").read_text() == str(place)
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_the_libraries_are_loaded_before_it_begins(child: str, tmp_path: Path) -> None:
    """Where processes can be copied; a process that loads them itself takes seconds."""
    wait_for([str(tmp_path), "0", "0"], child)
    loaded = set((tmp_path / "modules").read_text().split())
    assert {"torch", "transformers", "loralib.recipes.run"} <= loaded or sys.platform == "win32"


def test_the_peak_of_memory_is_its_own(child: str, tmp_path: Path) -> None:
    peaks = []
    for size in (400 << 20, 1 << 20):
        wait_for([str(tmp_path / "peak"), str(size)], "hungry_of_test")
        peaks.append(int((tmp_path / "peak").read_text()))
    assert peaks[0] > peaks[1] + (300 << 20)
    assert measure.peak_memory() > 0


@pytest.mark.parametrize("code", [0, 1, INTERRUPTED])
@pytest.mark.parametrize("number", BOTH)
def test_a_signal_to_this_process_alone_ends_the_one_it_waits_for(number: Any, code: int, child: str, tmp_path: Path) -> None:
    def press() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before, thread = [signal.getsignal(n) for n in BOTH], threading.Thread(target=press)
    thread.start()
    found = wait_for([str(tmp_path), str(code), "60"], child)
    thread.join()
    assert found == INTERRUPTED
    assert (tmp_path / "got").read_text() == str(int(signal.SIGTERM))
    assert [signal.getsignal(n) for n in BOTH] == before


def test_it_ends_when_the_process_that_waits_is_killed(child: str, tmp_path: Path) -> None:
    call = f"wait_for({[str(tmp_path), '0', '600']}, 'child_of_test')"
    program = f"from loralib.recipes.apart import wait_for\nif __name__ == '__main__':\n    {call}\n"
    (tmp_path / "waits.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    waiting = subprocess.Popen([sys.executable, str(tmp_path / "waits.py")], env=environment, stdin=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists():
        assert waiting.poll() is None
        time.sleep(0.05)
    waiting.kill()
    waiting.wait()
    assert gone(int((tmp_path / "pid").read_text()))
    assert (tmp_path / "got").read_text() == str(int(signal.SIGTERM))
