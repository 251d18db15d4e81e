"""Which process wrote something: its host, number and start, so that a number that another process has now is recognised."""

import hashlib
import itertools
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

# what names a process, and one of its writes, in the names of files; without the middle part the number alone decides
TAG = r"(?P<pid>\d{1,10})(-(?P<host>[0-9a-f]{6})-(?P<started>[0-9a-f]{6})-\d+)?"
_COUNT = itertools.count()


@dataclass(frozen=True)
class Process:
    """A process. started: when, in words of its system; empty where that does not say."""

    host: str
    pid: int
    started: str

    @property
    def is_gone(self) -> bool:
        """Whether it has surely ended; False for one of another host, of which nothing is known here."""
        if self.host != socket.gethostname():
            return False
        now = started(self.pid)
        return now is None or bool(now and self.started and now != self.started)


def this_process() -> Process:
    """The process that asks."""
    return Process(socket.gethostname(), os.getpid(), started(os.getpid()) or "")


def tag() -> str:
    """A text for the name of a file that is only there while this process writes it, another one each time."""
    own = this_process()
    return f"{own.pid}-{_short(own.host)}-{_short(own.started)}-{next(_COUNT)}"


def is_gone(found: re.Match[str]) -> bool:
    """Whether the process that a match of `TAG` names has surely ended."""
    if found["host"] not in (None, _short(socket.gethostname())):
        return False
    now = started(int(found["pid"]))
    return now is None or bool(now and found["started"] not in (None, _short(now)))


def started(pid: int) -> str | None:
    """When the process started, in words of this system: empty where it does not say, None when there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return None if state in ("Z", "X") else f"{boot}.{fields[18]}"
    except (OSError, ValueError, IndexError):
        return "" if _exists(pid) else None


def _exists(pid: int) -> bool:
    """Whether a process has this number; True where the system does not say (on Windows signal 0 is Ctrl-C)."""
    try:
        if os.name == "posix":
            os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
