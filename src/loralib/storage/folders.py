"""Folders that a command writes: whether one is free, and replacing what the same command wrote there before, and nothing else.

A folder carries a mark, `.loralib.json`, of who writes it; without the mark nothing in it is replaced, and neither is what
does not have a name that its writer gives. What is replaced waits in `.replaced/` within the folder until the new content is
whole, and comes back when that fails at its beginning. On its way it is in `.moving/`, so that no kill can lose any of it.
Only who has the folder's lock, `.loralib.lock`, changes it, and nobody changes a folder in it that another process has.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunError
from .atomic import write_atomically
from .json_text import as_json
from .lock import folder_lock, locks_below, target_of
from .temporaries import LOCK, is_leftover, next_to, purpose

MARK, REPLACED, _MOVING = ".loralib.json", ".replaced", ".moving"


def write_mark(folder: Path, title: str, files: list[str] | None = None) -> None:
    """Mark `folder` as written by the command `title`. files: all that it holds, where that is known."""
    mark = {"written_by": title, **({} if files is None else {"files": files})}
    write_atomically(folder / MARK, (as_json(mark, indent=2) + "\n").encode())


def files_by_mark(folder: Path, title: str) -> list[str] | None:
    """The files that the mark of `title` in `folder` names; None when there is no such mark."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return [str(name) for name in mark.get("files", [])] if mark["written_by"] == title else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def all_files(folder: Path) -> Iterator[str]:
    """The paths of all files and links below `folder`, within it and in order."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        folders.sort()
        yield from (Path(parent, name).relative_to(folder).as_posix() for name in sorted([*names, *links]))


@dataclass(frozen=True)
class Writer:
    """Who writes into a folder. title: what messages call it. pattern: of the paths of the files that it writes, within the
    folder. done: the file that it writes last. alone: whether what others wrote is refused even where nothing is replaced."""

    title: str
    pattern: str
    done: str
    alone: bool = False

    @contextmanager
    def alone_in(self, folder: Path) -> Iterator[None]:
        """Within the block no other process writes `folder`; what killed ones left half written in it is removed. Raises
        `RunError` when another process writes it, or when it is a file."""
        _check_no_file(folder)
        with folder_lock(folder):
            marked = files_by_mark(folder, self.title) is not None
            if marked or all(map(self._wrote, all_files(folder))):  # the first thing that is written is the mark
                self._remove_leftovers(folder)
            yield

    def check_free(self, folder: Path, overwrite: bool, resume: bool) -> None:
        """`RunError` unless `folder` may be written: it is new or empty, or may be overwritten or gone on with."""
        _check_no_file(folder)
        names = [name for name in all_files(folder) if name != LOCK]
        foreign = [name for name in names if not self._wrote(name)]
        if foreign and (overwrite or self.alone):
            raise RunError(f"{folder} holds what no {self.title} wrote ({_some(foreign)}); give another --output.")
        places = (folder, folder / REPLACED, folder / _MOVING)
        marked = any(files_by_mark(place, self.title) is not None for place in places)
        if names and not overwrite and not resume:
            if not marked and not {*names} - {*foreign, MARK}:
                raise RunError(
                    f"{folder} holds other files ({_some(foreign or names)}) and no {self.title}; choose another --output."
                )
            other = "--overwrite to replace it" if marked and not foreign else "choose another --output"
            raise RunError(f"{folder} exists and is not empty; add --resume to go on with it, or {other}.")
        if names and overwrite and not marked:
            raise RunError(
                f"{folder} has no mark ({MARK}) that a {self.title} wrote it, so it is not replaced; give another --output, or "
                "remove it yourself."
            )

    def begin(self, folder: Path) -> None:
        """Mark `folder` as this writer's; what was written to it before is moved away until `finish` or `give_up`."""
        kept, moving = folder / REPLACED, folder / _MOVING
        if kept.is_dir() and not moving.is_dir():
            if (folder / self.done).exists():  # what replaced it is whole
                shutil.rmtree(kept)
            else:
                self.clear(folder)
        if not kept.is_dir() and (moving.is_dir() or any(self._own(folder))):
            moving.mkdir(exist_ok=True)
            _move(folder, moving)
            moving.replace(kept)
        folder.mkdir(parents=True, exist_ok=True)
        write_mark(folder, self.title)

    def finish(self, folder: Path) -> None:
        """Remove what was moved away, now that the new content is whole."""
        shutil.rmtree(folder / REPLACED, ignore_errors=True)

    def give_up(self, folder: Path) -> None:
        """Remove what was written since `begin`, and put back what was moved away; an empty folder is removed."""
        self.clear(folder)
        kept, moving = folder / REPLACED, folder / _MOVING
        if kept.is_dir():
            kept.replace(moving)
            _move(moving, folder)
            with suppress(OSError):  # what somebody's new files are in the way of stays there
                moving.rmdir()
        with suppress(OSError):  # it is not empty, or its lock is there
            folder.rmdir()

    def clear(self, folder: Path) -> None:
        """Remove the files that this writer wrote, but for those moved away and those in folders that another process has, and
        folders that are empty then."""
        for name in sorted(self._own(folder), key=lambda name: name == MARK):  # without the mark the rest would be refused
            (folder / name).unlink()
        for parent, _, _ in os.walk(folder, topdown=False):
            if Path(parent) != folder and not any(Path(parent).iterdir()):
                Path(parent).rmdir()

    def _remove_leftovers(self, folder: Path) -> None:
        """Remove what this writer's processes left half written that have ended."""
        own = set(self._own(folder))
        for path in sorted(folder.rglob("*"), reverse=True):  # a folder comes after what is in it
            name = path.relative_to(folder).as_posix()
            if any(map(is_leftover, name.split("/"))):
                with suppress(OSError):  # what is not ours is in the folder
                    path.unlink() if name in own else path.rmdir()

    def _own(self, folder: Path) -> Iterator[str]:
        """The files of this writer, but for those moved away, the lock and those of other processes."""
        others = [target_of(lock) for lock in locks_below(folder)]
        held = [path.relative_to(folder).as_posix() for other in others for path in (other, next_to(other, ""))]
        left_alone = (f"{REPLACED}/", f"{_MOVING}/", *held)
        return (n for n in all_files(folder) if n != LOCK and self._wrote(n) and not n.startswith(left_alone))

    def _wrote(self, name: str) -> bool:
        parts = [purpose(part) for part in name.split("/") if part not in (REPLACED, _MOVING)]
        places = ["/".join(parts)]
        if parts[-1] != name.rpartition("/")[2]:  # perhaps the lock of a folder
            places.append("/".join([*parts, "config.json"]))
        return parts[-1] in (MARK, LOCK) or any(re.fullmatch(self.pattern, place) for place in places)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _check_no_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give another --output.")


def _move(source: Path, target: Path) -> None:
    """Move all that is in `source` to `target`, but for what is moved away; what is there already stays."""
    for path in sorted(source.iterdir()):
        if path.name not in (REPLACED, _MOVING, LOCK) and not (target / path.name).exists():
            path.replace(target / path.name)
