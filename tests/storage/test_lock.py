"""One process at a time writes a folder or a file; whose process is gone does not hinder the next, and one of many gets it."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loralib.cli import FAILED, guarded
from loralib.errors import RunError
from loralib.storage import lock
from loralib.storage.folders import MARK, Writer
from loralib.storage.lock import file_lock, folder_lock, locks_below
from loralib.storage.processes import Process, this_process
from loralib.storage.temporaries import LOCK

WRITER = Writer("run", r"([\w-]+/)*(a\.txt|done)", done="done")


def write_lock(path: Path, process: Process) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lock.Owner(process, "2026-01-31 12:00:00 +0000").to_bytes())
    return path


@pytest.fixture
def gone(ended_pid: int) -> Process:
    return Process(socket.gethostname(), ended_pid, "")


def without_locks(number: int) -> Any:
    """The module fcntl, where the file system answers with the error `number`."""

    def refuses(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    return SimpleNamespace(LOCK_EX=2, LOCK_NB=4, flock=refuses)


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def system_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system has locks of its own."""
    if not request.param:
        monkeypatch.setattr(lock, "fcntl", without_locks(errno.ENOLCK))
    return bool(request.param)


# --- one at a time --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("system_locks")
@pytest.mark.parametrize("take", [folder_lock, file_lock])
def test_the_second_is_refused_in_a_sentence_and_changes_nothing(take: Any, tmp_path: Path) -> None:
    target = tmp_path / "run"
    with take(target):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(RunError) as refused, take(target):
            pytest.fail("there are two")
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before == after
    (content,) = before.values()
    since = json.loads(content)["since"]
    own = f"process {os.getpid()} on {socket.gethostname()}, since {since}"
    assert str(refused.value).startswith(f"{target} is being written by {own}; wait until that has ended")
    assert str(refused.value).endswith("Nothing was changed.")
    assert not list(tmp_path.iterdir())
    with take(target):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_goes_with_every_end(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, ValueError, SystemExit):
        with suppress(error), folder_lock(tmp_path / "new" / "run"):
            assert (tmp_path / "new" / "run" / LOCK).exists()
            raise error
        assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    with folder_lock(tmp_path / "there"), folder_lock(tmp_path / "kept"):
        (tmp_path / "kept" / "file").touch()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"there", "kept", "kept/file"}


@pytest.mark.parametrize("name", ["file", ".", "..", "no/such/folder"])
def test_any_path_can_be_locked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    with file_lock(Path(name)), pytest.raises(RunError, match="is being written by process"), file_lock(Path(name)):
        pass


# --- who is gone ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("system_locks")
def test_a_lock_of_a_process_that_is_gone_is_taken_over(gone: Process, tmp_path: Path) -> None:
    write_lock(tmp_path / LOCK, gone)
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("system_locks")
def test_the_number_of_a_process_that_is_gone_may_be_anothers_now(tmp_path: Path) -> None:
    own = this_process()
    assert own.started
    assert not own.is_gone
    write_lock(tmp_path / LOCK, Process(own.host, own.pid, own.started + "0"))
    with folder_lock(tmp_path):
        pass


@pytest.mark.usefixtures("system_locks")
def test_a_process_of_another_host_may_be_alive_and_the_error_says_what_to_remove(ended_pid: int, tmp_path: Path) -> None:
    written = write_lock(tmp_path / LOCK, Process("elsewhere", ended_pid, "x"))
    content = written.read_bytes()
    message = rf"on elsewhere, since 2026.*; if it has ended, .*, remove {written}\. Nothing"
    with pytest.raises(RunError, match=message), folder_lock(tmp_path):
        pass
    assert written.read_bytes() == content
    written.unlink()
    with folder_lock(tmp_path):
        pass


# --- what else may be there -----------------------------------------------------------------------------------------


def test_an_empty_lock_is_free_where_the_system_tells_and_named_where_not(system_locks: bool, tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    if system_locks:
        with folder_lock(tmp_path):
            assert (tmp_path / LOCK).read_text()
    else:
        message = f"by another process; .*; if there is none, remove {tmp_path / LOCK}"
        with pytest.raises(RunError, match=message), folder_lock(tmp_path):
            pass


@pytest.mark.usefixtures("system_locks")
@pytest.mark.parametrize(
    "content", ["my notes", "[]", "{}", '{"host": "h", "pid": -1, "started": "", "since": ""}', "[" * 9999]
)
def test_a_file_that_is_no_lock_stays(content: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(content)
    message = "is in the place of a lock, and loralib did not write it; move it away"
    with pytest.raises(RunError, match=message), folder_lock(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text() == content


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=LOCK), folder_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(RunError, match="is in the place of a lock"), folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_one_sentence(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuses(path: Path, how: int, *mode: int) -> int:
        raise OSError(number, os.strerror(number), str(path))

    def work() -> int:
        with folder_lock(tmp_path / "run"):
            return 0

    monkeypatch.setattr(lock.os, "open", refuses)
    assert guarded(work) == FAILED
    assert capsys.readouterr().err == f"loralib: {os.strerror(number)} ({tmp_path / 'run' / LOCK}).\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("room", [0, 10])
def test_a_full_disk_leaves_no_lock_that_is_in_the_way(
    there: bool, room: int, gone: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write_to = tmp_path / "run", os.write
    if there:
        write_lock(folder / LOCK, gone)

    def full(descriptor: int, content: bytes) -> int:
        if not (left := room - os.fstat(descriptor).st_size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_to(descriptor, content[:left])

    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "write", full)
        with pytest.raises(OSError, match=f"No space left on device.*{LOCK}"), folder_lock(folder):
            pass
    assert folder.exists() == there
    with folder_lock(folder):
        pass


def test_a_lock_of_zeros_that_a_machine_that_stopped_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(bytes(100))
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "locked"), [(errno.EWOULDBLOCK, True), (errno.ENOLCK, False), (errno.ENOTSUP, False), (errno.ENOSYS, False)]
)
def test_a_file_system_without_locks_is_not_a_file_that_is_locked(
    number: int, locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", without_locks(number))
    monkeypatch.setattr(lock, "PATIENCE", 0)
    with pytest.raises(RunError, match="is being written") if locked else nullcontext(), file_lock(tmp_path / "file"):
        assert not locked


def test_a_copy_of_the_process_does_not_remove_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder_lock(tmp_path), monkeypatch.context() as patch:
        held = lock._acquire(tmp_path / "other", tmp_path)
        patch.setattr(os, "getpid", lambda: 1)
        lock._release(tmp_path / "other", held, 2)
        assert (tmp_path / "other").exists()


def test_a_lock_that_was_removed_by_hand_and_taken_by_another_stays(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        (tmp_path / LOCK).unlink()
        other = write_lock(tmp_path / LOCK, Process("elsewhere", 1, ""))
    assert other.exists()


# --- folders within -------------------------------------------------------------------------------------------------


def test_a_folder_in_which_another_process_writes_a_folder_is_refused(tmp_path: Path) -> None:
    out, refused = tmp_path / "out", pytest.raises(RunError, match="out/lora is being written by process")
    with folder_lock(out / "lora"), refused, folder_lock(out):
        pass
    with folder_lock(out / "lora"), folder_lock(out, whole=False):
        pass
    with folder_lock(tmp_path / "out"), folder_lock(tmp_path / "out" / "lora"):
        pass


def test_a_folder_in_which_another_process_writes_a_file_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    WRITER.begin(tmp_path)
    (tmp_path / "part").mkdir()
    for name in ("a.txt", f".a.txt.{os.getpid()}.tmp", ".done.lock", "done"):
        (tmp_path / "part" / name).touch()
    refused = pytest.raises(RunError, match=r"part/a.txt is being written by process")
    with file_lock(tmp_path / "part" / "a.txt"):
        with refused, folder_lock(tmp_path):
            pass
        WRITER.give_up(tmp_path)
        assert {path.name for path in (tmp_path / "part").iterdir()} == {"a.txt", f".a.txt.{os.getpid()}.tmp", ".a.txt.lock"}
    WRITER.clear(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"\x00" * 10_000, b'{"locks": []}'])
def test_files_of_others_that_end_in_lock_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "uv.lock").write_bytes(content)
    (tmp_path / "folder.lock").mkdir()
    with folder_lock(tmp_path):
        pass
    assert (tmp_path / "uv.lock").read_bytes() == content


def test_what_another_process_writes_is_neither_cleared_nor_moved(gone: Process, tmp_path: Path) -> None:
    WRITER.begin(tmp_path)
    for folder in ("live", "dead"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").touch()
    write_lock(tmp_path / "dead" / LOCK, gone)
    with folder_lock(tmp_path / "live"):
        WRITER.give_up(tmp_path)
        names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
        assert names == {"live", "live/a.txt", f"live/{LOCK}"}
    assert not list(locks_below(tmp_path))


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_lock_of_a_writer_is_neither_in_the_way_nor_part_of_what_it_replaces(
    overwrite: bool, gone: Process, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with WRITER.alone_in(folder):
        WRITER.check_free(folder, overwrite, resume=False)
        WRITER.begin(folder)
        (folder / "a.txt").write_text("old")
        WRITER.finish(folder)
    write_lock(folder / LOCK, gone)
    write_lock(folder / "part" / ".a.txt.lock", gone)
    with WRITER.alone_in(folder):
        WRITER.check_free(folder, overwrite=True, resume=False)
        WRITER.begin(folder)
        with pytest.raises(RunError, match="is being written by process"), WRITER.alone_in(folder):
            pass
        WRITER.give_up(folder)
    assert (folder / "a.txt").read_text() == "old"
    assert {path.name for path in folder.iterdir()} == {"a.txt", MARK, "part"}


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is a file; give another --output"), WRITER.alone_in(tmp_path / "file"):
        pass


# --- races ----------------------------------------------------------------------------------------------------------


def race(folder: Path, ready: Any, done: Any) -> bool:
    """Whether this one got the lock, which it holds until all have tried."""
    ready.wait()
    try:
        with folder_lock(folder):
            done.wait()
            return True
    except RunError:
        done.wait()
        return False


@pytest.mark.usefixtures("system_locks")
@pytest.mark.parametrize("there", [True, False])
def test_of_many_threads_one_gets_the_lock(there: bool, gone: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        if there:
            write_lock(folder / LOCK, gone)
        n, won = 8, []
        ready, done = threading.Barrier(n), threading.Barrier(n)

        def work(folder: Path = folder, ready: Any = ready, done: Any = done, won: list[bool] = won) -> None:
            won.append(race(folder, ready, done))

        threads = [threading.Thread(target=work) for _ in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == [False] * (n - 1) + [True]


def race_apart(folders: dict[Path, bool], ready: Any, done: Any, won: Any) -> None:
    of_system: Any = lock.fcntl
    for folder, flock in folders.items():
        lock.fcntl = of_system if flock else without_locks(errno.ENOLCK)
        won.put((folder, race(folder, ready, done)))


@pytest.mark.slow
def test_of_twenty_processes_one_takes_over(gone: Process, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    folders = {tmp_path / str(attempt): attempt % 2 == 0 for attempt in range(40)}
    for folder in folders:
        write_lock(folder / LOCK, gone)
    ready, done, won = context.Barrier(20), context.Barrier(20), context.Queue()
    processes = [context.Process(target=race_apart, args=(folders, ready, done, won)) for _ in range(20)]
    for process in processes:
        process.start()
    found = [won.get(timeout=120) for _ in range(len(processes) * len(folders))]
    for process in processes:
        process.join()
    assert sorted(folder for folder, first in found if first) == sorted(folders)


HOLDER = """
import sys, time
from pathlib import Path
from loralib.storage.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("system_locks")
@pytest.mark.parametrize("waited_for", [True, False])
def test_a_kill_leaves_a_lock_that_is_taken_over_at_once(waited_for: bool, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"by process {process.pid} on"), folder_lock(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | (0 if waited_for else os.WNOWAIT))
        assert (tmp_path / LOCK).exists()
        with folder_lock(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
