"""Files that appear whole or not at all, and safetensors files from strangers."""

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import FormatError

_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError)


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
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; `FormatError` when it is none or is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a whole safetensors file ({error}); fetch or save it again.") from None


def read_pickled(path: Path) -> Any:
    """What `torch.save` wrote to `path`, if it is made of tensors and plain values; nothing in the file is executed.
    `FormatError` when it is not, or is damaged."""
    if not path.is_file():
        raise FormatError(f"{path} is no file; give the path of a checkpoint that torch.save wrote.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about what makes it fail in the next moment
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise FormatError(f"{path} is no checkpoint of tensors that is safe to read ({reason}).") from None


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file that holds `tensors`."""
    apart = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}  # may share memory
    content: bytes = safetensors.torch.save(apart, metadata={"format": "pt"})
    return content
