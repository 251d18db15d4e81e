"""A kill at any step of a write leaves the old content or the new one, and the next write of the same leaves nothing else."""

import os
from pathlib import Path

import pytest

from kills import in_fresh_process
from loralib.storage import processes
from loralib.storage.atomic import write_atomically
from loralib.storage.folders import Writer, write_mark
from loralib.storage.temporaries import leftovers, next_to, purpose, temporary


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "a.txt", ".hidden", "a.7.tmp", "a b\n", "ü"])
@pytest.mark.parametrize("kind", ["tmp", "old"])
def test_what_a_temporary_is_for_can_be_read_from_its_name(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert purpose(temporary(path, processes.tag(), kind).name) == name
    assert purpose(next_to(path, "lock").name) == name
    assert temporary(path, processes.tag()) != temporary(path, processes.tag())


def test_only_what_a_process_left_that_has_ended_is_a_leftover(ended: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    pid, host, started, count = ended.split("-")
    other, own = f"{pid}-{'0' * 6}-{started}-{count}", processes.tag()
    given_again = f"{os.getpid()}-{host}-{started}-{count}"
    for tag in (ended, other, own, given_again, pid, str(os.getpid())):
        temporary(path, tag).touch()
    for name in (f".b.{ended}.tmp", f".a.b.{ended}.tmp", f"a.{ended}.tmp", f".a.{ended}.tmp2", ".a.x.tmp", ".a.tmp"):
        (tmp_path / name).touch()
    assert {left.tag for left in leftovers(path)} == {ended, given_again, pid}
    assert {left.tag for left in leftovers(path, locked=True)} == {ended, other, own, given_again, pid, str(os.getpid())}
    assert list(leftovers(tmp_path / "none" / "a")) == []
    write_atomically(path, b"new")
    assert {left.tag for left in leftovers(path, locked=True)} == {other, own, str(os.getpid())}


# --- run folders ----------------------------------------------------------------------------------------------------


KILLED_RUNS = """
import shutil, sys
from pathlib import Path
from kills import kills
from loralib.storage.atomic import write_atomically, write_together
from loralib.storage.folders import MARK, Writer

folder, there = Path(sys.argv[1]) / "work" / "run", sys.argv[2] == "True"
writer = Writer("run", r"a|done|part/[xy]", done="done")

def run(text, overwrite=True, fails=False):
    with writer.alone_in(folder):
        writer.check_free(folder, overwrite, resume=False)
        writer.begin(folder)
        write_atomically(folder / "a", text.encode())
        if fails:
            writer.give_up(folder)
            return
        (folder / "part").mkdir(exist_ok=True)
        write_together({folder / "part" / name: text.encode() for name in "xy"})
        write_atomically(folder / "done", text.encode())
        writer.finish(folder)

def begin():
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir()
    if there:
        run("old")

def found():
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}

def whole(text):
    return {"a": text, "done": text, "part/x": text, "part/y": text}

for fails in (True, False):
    for step in kills(lambda: run("new", overwrite=there, fails=fails), folder.parent, begin):
        kept = [path.read_text() for path in folder.rglob("*") if path.is_file() and path.name == "done"]
        assert "old" in kept or "new" in kept or not there, (step, kept)
        run("newer", fails=True)
        now = found()
        now.pop(MARK, None)
        if there:
            assert now in (whole("old"), whole("new")), (step, now)
        else:  # what was there is the part that the killed one had written
            assert now.items() <= whole("new").items(), (step, now)
    for step in kills(lambda: run("new", overwrite=there, fails=fails), folder.parent, begin):
        run("newer")
        now = found()
        now.pop(MARK)
        assert now == whole("newer"), (step, now)
    print(step)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system copies no processes")
@pytest.mark.parametrize("there", [True, False])
def test_a_run_that_is_killed_at_any_step_is_in_no_ones_way(there: bool, tmp_path: Path) -> None:
    giving_up, whole = map(int, in_fresh_process(KILLED_RUNS, tmp_path, str(there)).split())
    assert giving_up > 10
    assert whole > 15


@pytest.mark.parametrize("marked", [True, False])
def test_what_killed_writes_left_in_a_folder_goes_when_its_writer_comes_again(marked: bool, ended: str, tmp_path: Path) -> None:
    writer = Writer("run", r"a\.txt|(part|merged)/(.+/)?[^/]+\.bin", done="a.txt")
    if marked:
        write_mark(tmp_path, "run")
    (tmp_path / "part").mkdir()
    live = temporary(tmp_path / "part" / "live.bin", processes.tag())
    other = temporary(tmp_path / "thesis.tex", ended)
    folder = temporary(tmp_path / "merged", ended)
    (folder / "inner").mkdir(parents=True)
    left = [
        *(temporary(tmp_path / "a.txt", ended), temporary(tmp_path / "part" / "x.bin", ended, "old")),
        *(folder / "model.bin", folder / "inner" / "model.bin"),
    ]
    for path in (live, other, *left):
        path.touch()
    if not marked:
        (tmp_path / "notes").touch()
    with writer.alone_in(tmp_path):
        assert live.exists()
        assert other.exists()
        assert [path.exists() for path in (*left, folder)] == [not marked] * 5
