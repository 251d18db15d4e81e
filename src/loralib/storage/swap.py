"""A folder that is replaced as a whole: the new one is filled next to its place, and takes that when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import FormatError
from .atomic import sync_folder
from .folders import MARK, all_files, files_by_mark
from .lock import file_lock
from .processes import tag
from .temporaries import leftovers, temporary


@contextmanager
def sole_writer(output: Path, title: str) -> Iterator[None]:
    """Within the block no other process replaces the folder `output`, which `title` writes; `RunError` when one does.

    What killed ones left is removed first. A folder that they had moved away, and put nothing in its place, comes back.
    """
    with file_lock(output):
        _undo(output, title)
        yield


def check_place(output: Path, title: str, overwrite: bool) -> None:
    """`FormatError` when `title` may not write the folder `output`: only what `title` itself wrote is replaced, if that is
    asked for."""
    if not output.exists():
        return
    if not output.is_dir():
        raise FormatError(f"{output} is a file, and the result is a folder; choose another place. Nothing was written.")
    if not overwrite:
        raise FormatError(
            f"{output} exists",
            "choose another place, or say overwrite=True",
            option="add --overwrite to replace it, or give another place",
            outcome="Nothing was written.",
        )
    held, known = list(all_files(output)), files_by_mark(output, title)
    if held and known is None:
        raise FormatError(
            f"{output} has no mark ({MARK}) that {title} wrote it, so it is not replaced; choose another place, or remove it "
            "yourself. Nothing was written."
        )
    if foreign := [name for name in held if name not in (MARK, *(known or ()))]:
        raise FormatError(
            f"{output} holds what {title} did not write ({', '.join(foreign[:3])}); choose another place. Nothing was written."
        )


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill in the block, which then becomes `output`. Where that fails, what was at `output` is still there."""
    own = tag()
    work = temporary(output, own)
    try:
        work.mkdir()
        yield work
        _put(work, output, temporary(output, own, "old"))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put(work: Path, output: Path, old: Path) -> None:
    """Let the finished folder take its place; what was there is removed only then, and put back where that fails."""
    sync_folder(work)
    try:
        if os.path.lexists(output):
            output.replace(old)
        work.replace(output)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(output):
            old.replace(output)
        raise
    sync_folder(output.parent)
    _remove(old, output)


def _undo(output: Path, title: str) -> None:
    """Remove what killed writers left; the last one's old folder comes back where there is no new one."""
    left = list(leftovers(output, locked=True))
    old = [leftover.path for leftover in left if leftover.kind == "old"]
    if old and not os.path.lexists(output):
        old.pop().replace(output)
    replaced = files_by_mark(output, title) is not None
    for path in (leftover.path for leftover in left if leftover.kind == "tmp" or (leftover.path in old and replaced)):
        _remove(path, output)


def _remove(path: Path, output: Path) -> None:
    """Remove a file, a link or a folder that was for `output`; half a folder has another name, so that it is not put back."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        going = temporary(output, tag())
        path.replace(going)
        shutil.rmtree(going)
