"""Standard output and error that never end a command's work: no character is too strange for them, and a closed pipe, a full
disk or a descriptor that is not there is remembered, and counts when the work is done.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from .terminal import in_ascii

ERRORS = "loralib.in-ascii"


class Lenient(io.FileIO):
    """A descriptor to write to; after the first failure nothing is written any more. failure: what went wrong."""

    failure: OSError | None = None

    def write(self, content: Any, /) -> int:
        """Write what can be written; all of it counts as written."""
        left = memoryview(content).cast("B")
        size = len(left)
        while len(left) and self.failure is None:
            try:
                left = left[super().write(left) or 0 :]
            except OSError as error:
                self.failure = error
        return size


def _instead(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


def lenient(stream: TextIO | None, descriptor: int) -> tuple[TextIO, Lenient]:
    """A stream in place of `stream` (None: it was closed before the program began), and the descriptor that it writes to."""
    codecs.register_error(ERRORS, _instead)
    raw = Lenient(descriptor, "w", closefd=False)
    encoding = "utf-8" if stream is None else stream.encoding
    buffered = stream is not None and not stream.isatty() and descriptor == 1
    made = io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=ERRORS, line_buffering=not buffered)
    return made, raw


def occupy() -> None:
    """Put something in the places of standard descriptors that are closed, so that no file opened later is taken for one.

    What is put there refuses to be written to, and has nothing to read.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115


def delivering(work: Callable[[], int], complain: Callable[[str, int], int], failed: int) -> int:
    """The exit code of `work`, done with lenient standard streams; `failed` when it worked and its output could not be
    written."""
    occupy()
    sys.stdout, out = lenient(sys.stdout, 1)
    sys.stderr, _ = lenient(sys.stderr, 2)
    try:
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else failed
    sys.stdout.flush()
    if out.failure is not None and code == 0:
        code = failed
        if out.failure.errno != errno.EPIPE:
            reason = "it is closed" if out.failure.errno == errno.EBADF else out.failure.strerror
            complain(
                f"standard output could not be written ({reason}); the work itself is done, and its files are whole.", code
            )
    sys.stderr.flush()
    return code
