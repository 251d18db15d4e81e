"""Progress of long work on a terminal: a bar of rich if it is installed, else one line."""

import contextlib
import sys
from types import TracebackType
from typing import Any, Self

_LINE = "\r{title}: {share:.0%} "


class Progress:
    """Shows how far `title` is while its block lasts; nothing where standard error is not a terminal.

    >>> with Progress("Merging") as progress:
    ...     progress.at(1, 2)
    """

    def __init__(self, title: str):
        self.title = title
        self._bar: Any = None
        self._task: Any = None
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        if self._live:
            with contextlib.suppress(ImportError):
                from rich import progress
                from rich.console import Console

                self._bar = progress.Progress(
                    progress.TextColumn("{task.description}", markup=False),
                    progress.BarColumn(),
                    progress.TaskProgressColumn(),
                    progress.TimeRemainingColumn(),
                    console=Console(stderr=True),
                    transient=True,
                )
                self._bar.start()
                self._task = self._bar.add_task(self.title, total=None)
        return self

    def at(self, done: int, total: int) -> None:
        """Show that `done` of `total` is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif self._live:
            sys.stderr.write(_LINE.format(title=self.title, share=done / max(1, total)))
            sys.stderr.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._live:
            sys.stderr.write("\r" + " " * (len(self.title) + 8) + "\r")
