"""One writer at a time: a file that says which process writes a folder or a file, and since when.

    {"host": "gpu3", "pid": 4711, "started": "…", "since": "2026-01-31 12:00:00 +0000"}

It is removed when the process is done. One that a killed process left is taken over: its host is this one, and the process is
gone. Of a process on another host nothing is known, so its lock stays until somebody removes it. Of several processes that
find the same old lock one takes it over: who gets the system's own lock on the file (flock), or, on file systems without
these, creates the file that names the successor.
"""

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import RunError
from .json_text import as_json
from .processes import Process, this_process
from .temporaries import LOCK, next_to, purpose

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_LONGEST = 4096
PATIENCE = 1.0  # seconds in which a process that has the lock has written who it is


@dataclass(frozen=True)
class Owner:
    """What a lock says: which process has it, and since when."""

    process: Process
    since: str

    def to_bytes(self) -> bytes:
        """The content of the lock."""
        return as_json(asdict(self.process) | {"since": self.since}).encode()

    @classmethod
    def read(cls, content: bytes) -> "Owner | None":
        """What the content of a lock says; None when it is none, or not yet whole."""
        try:
            values = json.loads(content)
            process = Process(str(values["host"]), int(values["pid"]), str(values["started"]))
            return cls(process, str(values["since"])) if process.pid > 0 else None
        except (ValueError, RecursionError, KeyError, TypeError):
            return None


@contextmanager
def folder_lock(folder: Path, *, whole: bool = True) -> Iterator[None]:
    """Within the block no other process writes `folder`, which is made; one that is empty at the end is removed if it was.

    whole: with all that is in it, so that others may not write that either. Raises `RunError` when another process writes it.
    """
    with _locked(folder / LOCK, folder):
        if whole and (held := next(locks_below(folder), None)):
            raise _in_use(target_of(held), held, _read(held))
        yield


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Within the block no other process writes `path`, a file or a folder that is replaced as a whole; `RunError` otherwise.

    The folder that it is in is made; one that is empty at the end is removed if it was.
    """
    with _locked(next_to(path, "lock"), path):
        yield


def locks_below(folder: Path) -> Iterator[Path]:
    """The locks of processes that may be alive, of what is within `folder`."""
    for lock in folder.rglob("*.lock"):
        owner = _read(lock) if lock != folder / LOCK else None
        if owner is not None and not owner.process.is_gone:
            yield lock


def target_of(lock: Path) -> Path:
    """The file or folder that the lock is for."""
    return lock.parent if lock.name == LOCK else lock.parent / purpose(lock.name)


@contextmanager
def _locked(lock: Path, what: Path) -> Iterator[None]:
    missing = [folder for folder in lock.parents if not folder.exists()]
    try:
        descriptor, process = _acquire(lock, what), os.getpid()
        try:
            yield
        finally:
            _release(lock, descriptor, process)
    finally:
        for folder in missing:
            with suppress(OSError):  # it is not empty, or never came to be
                folder.rmdir()


def _acquire(lock: Path, what: Path) -> int:
    """Take the lock and return its open file; `RunError` when a process has it that may be alive."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor, is_new = _open(lock)
        except FileNotFoundError:  # another process removed the folder or the lock meanwhile
            continue
        try:
            if _take(descriptor, lock, what, is_new):
                return descriptor
        except BaseException as error:
            if is_new and not isinstance(error, RunError):  # it could not be written, and nobody else has it
                lock.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(lock: Path) -> tuple[int, bool]:
    """The open file, and whether this call created it. A link is not followed."""
    how = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(lock, how | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(lock, how), False


def _take(descriptor: int, lock: Path, what: Path, is_new: bool) -> bool:
    """Write this process into the lock, if nobody has it. False when the file was removed meanwhile; `RunError` when another
    process has it."""
    exclusive = _flock(descriptor)
    if exclusive is False:
        raise _in_use(what, lock, _patiently_read(lock))
    if not _is_at(descriptor, lock):
        return False
    if not is_new:
        left = _left(descriptor, lock, what, empty_is_free=exclusive is True)
        if left and exclusive is None:
            return _succeed(left, descriptor, lock, what)
    _write(descriptor, lock)
    return True


def _flock(descriptor: int) -> bool | None:
    """Whether this process has the system's lock on an open file now; None where there are none."""
    if fcntl is None:  # pragma: no cover - Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # this file system has none
        return None
    return True


def _left(descriptor: int, lock: Path, what: Path, *, empty_is_free: bool) -> Owner | None:
    """The process, now gone, that left a lock that was there; `RunError` for any other."""
    content = _content(descriptor)
    owner = Owner.read(content)
    if owner is None and content.strip(b"\0"):  # zeros: the machine stopped before the content was on the disk
        raise RunError(
            f"{lock} is in the place of a lock, and loralib did not write it", "move it away", outcome="Nothing was changed."
        )
    if (owner is None and not empty_is_free) or (owner is not None and not owner.process.is_gone):
        raise _in_use(what, lock, owner)
    return owner


def _succeed(left: Owner, descriptor: int, lock: Path, what: Path) -> bool:
    """Take over the lock that a process left, without the system's locks: one process creates the file that names it, and
    nobody else writes to the lock as long as that is there. False when another has taken it over since it was read."""
    claim = next_to(lock, f"{left.process.pid}.tmp")
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise _in_use(what, claim, None) from None
    try:
        if not _is_at(descriptor, lock) or Owner.read(_content(descriptor)) != left:
            return False
        _write(descriptor, lock)
        return True
    finally:
        claim.unlink()


def _release(lock: Path, descriptor: int, process: int) -> None:
    """Remove the lock, unless somebody did, or this is a copy of the process that has it."""
    ours = process == os.getpid() and _is_at(descriptor, lock)
    if fcntl is None:  # pragma: no cover - Windows removes no open files
        os.close(descriptor)
    if ours:
        with suppress(OSError):
            lock.unlink()
    if fcntl is not None:
        os.close(descriptor)


def _is_at(descriptor: int, lock: Path) -> bool:
    """Whether the open file is still the one with the lock's name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _content(descriptor: int) -> bytes:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return b"a pipe or a device, from which reading would wait"
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, _LONGEST)


def _write(descriptor: int, lock: Path) -> None:
    """Write this process into the lock; `OSError` naming it when that fails."""
    now = Owner(this_process(), time.strftime("%Y-%m-%d %H:%M:%S %z")).to_bytes()
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.truncate(descriptor, 0)
        while now:
            now = now[os.write(descriptor, now) :]
    except OSError as error:
        with suppress(OSError):
            os.truncate(descriptor, 0)
        raise OSError(error.errno, error.strerror, str(lock)) from error


def _read(lock: Path) -> Owner | None:
    """What the lock says; None when there is none."""
    try:
        if not lock.is_file():  # reading from a pipe would wait
            return None
        with lock.open("rb") as file:
            return Owner.read(file.read(_LONGEST))
    except OSError:
        return None


def _patiently_read(lock: Path) -> Owner | None:
    """Who has a lock that is held, once it says so."""
    end = time.monotonic() + PATIENCE
    while True:
        owner = _read(lock)
        if (owner is not None and not owner.process.is_gone) or time.monotonic() > end:
            return owner
        time.sleep(0.01)


def _in_use(what: Path, lock: Path, owner: Owner | None) -> RunError:
    """The error that says who writes `what`, and what to do."""
    wait = "wait until that has ended, or give another place"
    if owner is None:
        return RunError(
            f"{what} is being written by another process",
            f"{wait}; if there is none, remove {lock}",
            outcome="Nothing was changed.",
        )
    process = owner.process
    if process.host != this_process().host or os.name != "posix":
        wait += f"; if it has ended, as nobody can tell from here, remove {lock}"
    who = f"process {process.pid} on {process.host}, since {owner.since}"
    return RunError(f"{what} is being written by {who}", wait, outcome="Nothing was changed.")
