"""Files that are written whole or not at all, and JSON objects read with one clear error."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside `path`, sync it to the disk, and rename it over `path`.

    Raises `OSError` naming `path` when that fails; what was at `path` is then still there.
    """
    write_together({path: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all of them beside their places first, and only then rename them, one after the
    other. Raises `OSError` naming the file that failed; when it was in the writing, all the old files are still there.
    """
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    path = next(iter(files))
    try:
        for path, content in files.items():
            with temporaries[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
        for folder in {path.parent for path in files}:
            sync_folder(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


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
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise FormatError(f"{path} is not JSON ({error}); fetch or save it again.") from None
    if not isinstance(values, dict):
        raise FormatError(f"{path} is not a JSON object; fetch or save it again.")
    return values
