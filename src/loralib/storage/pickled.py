"""Pickled checkpoints from strangers: read as data, never executed, and never larger in memory than the file."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FormatError
from .places import unreadable, what_is_at

_WRAPPERS = ("model_state_dict", "state_dict", "model")
_DDP = "module."
_REFUSED = re.compile(r"\bGLOBAL ([\w.]+)")
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


def read_pickled(path: Path) -> Any:
    """What `torch.save` wrote to `path`, if it is made of tensors and plain values; nothing in the file is executed, and no
    more memory is asked for than the file is large. `FormatError` when it is not so, or is damaged."""
    if not path.is_file():
        raise FormatError(f"{path} {what_is_at(path)}; give the path of a checkpoint that torch.save wrote.")
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about what makes it fail in the next moment
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _check_tensors(path, content)
    except FormatError:
        raise
    except PermissionError as error:
        raise unreadable(path, error) from None
    except _UNREADABLE as error:
        raise FormatError(f"{path} is not a checkpoint of tensors that is safe to read ({_reason(error)}).") from None
    return content


def _reason(error: BaseException) -> str:
    """What is wrong with a file, without torch's advice to let it run code."""
    if not isinstance(error, pickle.UnpicklingError):
        return str(error).partition("\n")[0]
    refused = _REFUSED.search(str(error))
    return f"it names {refused[1]}, which could run code" if refused else "it holds more than tensors and plain values"


def _check_archive(path: Path) -> None:
    """`FormatError` unless `path` is what torch writes since version 1.6: a zip archive in which nothing is compressed, and
    which holds no more bytes than the file has. (In the older layout a file can speak of any number.)"""
    if not zipfile.is_zipfile(path):
        raise FormatError(
            f"{path} is not a checkpoint of tensors that is safe to read (no archive, as torch has written since version 1.6); "
            "load an older one that you trust with torch.load, and save it again."
        )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type or entry.file_size != entry.compress_size for entry in entries):
        raise FormatError(f"{path} is a compressed archive; torch.save writes none.")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise FormatError(f"{path} is corrupt: its archive declares more bytes than the file contains.")


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


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of the file `path`, by the names that the model has for them. Never executes what the file contains.

    A state dict inside a training checkpoint (`model_state_dict`, as 0.1's GPT-2 examples save it) is found, and the prefix
    that DistributedDataParallel leaves is taken off. Raises `FormatError` when the file is none of this.
    """
    content = read_pickled(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return _named_tensors(path, content)


def _named_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise FormatError(f"{path} holds a {type(content).__name__}, not a state dict.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise FormatError(f"{path} is not a state dict: its entry {name!r:.80} is a {type(value).__name__}, not a tensor.")
    prefix = _DDP if all(name.startswith(_DDP) for name in content) else ""
    return {name.removeprefix(prefix): tensor.detach() for name, tensor in content.items()}
