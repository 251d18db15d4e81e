"""Files that appear whole or not at all, and pickled checkpoints from strangers."""

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import FormatError

_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
)


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


def read_pickled(path: Path) -> Any:
    """What `torch.save` wrote to `path`, if it is made of tensors and plain values; nothing in the file is executed, and no
    more memory is asked for than the file is large. `FormatError` when it is not so, or is damaged."""
    if not path.is_file():
        raise FormatError(f"{path} is no file; give the path of a checkpoint that torch.save wrote.")
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about what makes it fail in the next moment
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _check_tensors(path, content)
    except FormatError:
        raise
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise FormatError(f"{path} is no checkpoint of tensors that is safe to read ({reason}).") from None
    return content


def _check_archive(path: Path) -> None:
    """`FormatError` unless `path` is what torch writes since version 1.6: a zip archive in which nothing is compressed, and
    which holds no more bytes than the file has. (In the older layout a file can speak of any number.)"""
    if not zipfile.is_zipfile(path):
        raise FormatError(
            f"{path} is no checkpoint of tensors that is safe to read (no archive, as torch has written since version 1.6); "
            "load an older one that you trust with torch.load, and save it again."
        )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type or entry.file_size != entry.compress_size for entry in entries):
        raise FormatError(f"{path} is a compressed archive; torch.save writes none.")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise FormatError(f"{path} speaks of more bytes than it has.")


def _check_tensors(path: Path, content: Any) -> None:
    """`FormatError` when a tensor in (dictionaries in) `content` is not a plain one, or is larger than the file."""
    size, seen, waiting = path.stat().st_size, set[int](), [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values()
        elif isinstance(value, torch.Tensor):
            plain = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
            if not plain or value.numel() * value.element_size() > size:
                raise FormatError(f"{path} holds a tensor that is sparse, quantized, without data, or larger than the file.")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`; `FormatError` when it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise FormatError(f"{path} is not JSON ({error}); fetch or save it again.") from None
    if not isinstance(values, dict):
        raise FormatError(f"{path} is not a JSON object; fetch or save it again.")
    return values
