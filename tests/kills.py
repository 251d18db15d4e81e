"""Kills at every step: work is done again and again, each time killed one step later, until it ends by itself.

A step is whatever the interpreter reports that it is about to do to a file or a folder: open, rename, remove, make. The kill is
that of the operating system: nothing is caught and nothing is cleaned up.

Works in a process that has one thread, such as `in_fresh_process` starts.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


def killed(work: Callable[[], object], folder: Path, step: int) -> bool:
    """Whether a copy of this process was killed at that step in `folder`, before it was done with the work."""
    if (pid := os.fork()) == 0:
        _kill_at(folder, step)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -9), code
    return code == -9


def _kill_at(folder: Path, step: int) -> None:
    left = step

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in STEPS and isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(str(folder)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)

    sys.addaudithook(count)


def kills(work: Callable[[], object], folder: Path, begin: Callable[[], object]) -> Iterator[int]:
    """The steps of the work, each when it was just killed there; before each, `begin` puts `folder` in order."""
    step = 0
    while True:
        begin()
        if not killed(work, folder, step):
            return
        yield step
        step += 1


def in_fresh_process(program: str, *words: str | Path) -> str:
    """What a program prints that runs in a process of its own, next to the tests; a failed assertion of it fails here."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
