"""Files that appear whole or not at all, and safetensors files from strangers."""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import FormatError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside `path`, sync it to the disk, and rename it over `path`.

    Raises `OSError` naming `path` when that fails; what was at `path` is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; `FormatError` when it is none or is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a whole safetensors file ({error}); fetch or save it again.") from None


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file that holds `tensors`."""
    apart = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}  # may share memory
    content: bytes = safetensors.torch.save(apart, metadata={"format": "pt"})
    return content
