"""Files that are written whole or not at all, and JSON objects read with one clear error."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import FormatError
from .places import check_is_file, unreadable
from .processes import tag
from .temporaries import leftovers, temporary

Waiting = dict[tuple[Path, str], Path]  # (file, "tmp" or "old") to where its new or its old content waits


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file next to `path`, sync it to the disk, and rename it over `path`.

    Raises `OSError` naming `path` when that fails; what was at `path` is then still there.
    """
    write_together({path: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together, the one without which the others are not read last.

    All of them are written next to their places first. Then the last old one makes way, so that nobody reads it with the
    others' new content, and the new ones are renamed in order. What a kill leaves of this is resolved by `settle`, which also
    begins every write of the same files. Raises `OSError` naming the file that failed; when it was in the writing, all the old
    files are still there.
    """
    paths, own = list(files), tag()
    settle(paths)
    waiting: Waiting = {(path, "tmp"): temporary(path, own) for path in paths}
    path = paths[0]
    try:
        for path, content in files.items():
            with waiting[path, "tmp"].open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if len(paths) > 1:
            waiting[path, "old"] = temporary(path, own, "old")
            with suppress(FileNotFoundError):  # there is none
                path.replace(waiting[path, "old"])
        for path in paths:
            waiting[path, "tmp"].replace(path)
        for folder in {path.parent for path in paths}:
            sync_folder(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        _resolve(paths, waiting)


def settle(paths: Sequence[Path]) -> None:
    """Finish or undo what `write_together` left of these files when it was killed, and remove its temporaries."""
    killed: dict[str, Waiting] = {}
    for path in paths:
        for left in leftovers(path):
            killed.setdefault(left.tag, {})[path, left.kind] = left.path
    for waiting in killed.values():
        _resolve(paths, waiting)


def _resolve(paths: Sequence[Path], waiting: Waiting) -> None:
    """Finish a write in which a file is in its place already, undo any other, and remove what is left of it.

    The last new file is removed first and the first one last, so that a kill here does not look as if it were in its place.
    """
    first, last = paths[0], paths[-1]
    there = {key: place for key, place in waiting.items() if os.path.lexists(place)}
    if not os.path.lexists(last):
        if (first, "tmp") in there:
            _rename(there, (last, "old"), last)
        else:
            for path in paths:
                _rename(there, (path, "tmp"), path)
    for path in reversed(paths):
        for kind in ("old", "tmp"):
            if (path, kind) in there:
                there[path, kind].unlink(missing_ok=True)


def _rename(waiting: Waiting, key: tuple[Path, str], path: Path) -> None:
    if key in waiting:
        waiting[key].replace(path)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last, as `fsync` makes the content of files last; Windows has no such call, nor need of it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`; `FormatError` when it is none."""
    check_is_file(path, "JSON file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON ({error}); fetch or save it again.") from None
    if not isinstance(values, dict):
        raise FormatError(f"{path} is not a JSON object; fetch or save it again.")
    return values
