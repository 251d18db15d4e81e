"""The layout of a safetensors file: 8 bytes with the length of a JSON header, the header, then the tensors one after another.

The header is what the safetensors library would write for the same tensors, byte for byte, but with the metadata in
alphabetical order, where that library's order changes from one process to the next. So equal content makes equal files.
On reading the safetensors library checks every offset against the size of the file, which is mapped into memory, so that a
tensor costs nothing before it is used.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FormatError
from ..tensors import as_bytes
from .places import check_is_file, unreadable

DTYPES = {  # in the order of the safetensors library, which writes the last ones first
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_RANK = {code: i for i, code in enumerate(DTYPES)}
_ALIGNMENT = 8
_METADATA = "__metadata__"
SUFFIX = ".safetensors"


class Entry(NamedTuple):
    """One tensor: its dtype as a code of `DTYPES`, its shape, and where its bytes lie, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says of its tensors; size: of the header itself, so that `size + entry.start` is a place in the file."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    size: int


def laid_out(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> dict[str, Entry]:
    """Places for tensors given as (name, dtype code, shape, bytes), in the order in which a file has them."""
    entries, at = {}, 0
    for name, dtype, shape, size in sorted(tensors, key=lambda tensor: (-_RANK[tensor[1]], tensor[0])):
        entries[name] = Entry(dtype, tuple(shape), at, at + size)
        at += size
    return entries


def header_bytes(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a file that has `entries`, its length included."""
    content: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    for name, e in entries.items():
        content[name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.start, e.end]}
    header = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A whole file that holds `tensors`.

    >>> len(tensor_bytes({"a": torch.zeros(2)}, {"format": "pt"}))
    104
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in CODES:
            raise FormatError(f"{name!r} has dtype {tensor.dtype}, which safetensors cannot hold. Nothing was written.")
        if name == _METADATA or not _is_unicode(name):
            raise FormatError(f"A safetensors file cannot have a tensor of the name {name!r}. Nothing was written.")
    entries = laid_out((name, CODES[t.dtype], tuple(t.shape), t.nbytes) for name, t in tensors.items())
    return b"".join([header_bytes(entries, metadata), *(as_bytes(tensors[name]).numpy().data for name in entries)])


def _is_unicode(name: str) -> bool:
    """Whether `name` is text that can be encoded, not half of a pair of surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_header(path: Path) -> Header:
    """The header of the file `path`, checked against its size; `FormatError` when it is not a whole safetensors file."""
    with _opened(path), path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        content = json.loads(file.read(size))
    metadata = content.pop(_METADATA, None) or {}
    entries = {n: Entry(e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for n, e in content.items()}
    return Header(entries, metadata, 8 + size)


def mapped_tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """The tensors of the file `path`, which has this header, by their names in order, mapped into memory.

    Each has a storage of its own, so that pickling one does not write the others. `FormatError` for one that torch cannot have.
    """
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    found = {}
    for name, entry in sorted(header.entries.items()):
        try:
            own = storage[header.size + entry.start : header.size + entry.end]
            found[name] = torch.empty(0, dtype=DTYPES[entry.dtype]).set_(own).view(entry.shape)
        except (RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise FormatError(f"{path} holds a tensor that torch cannot ({error}).") from None
    return found


def _opened(path: Path) -> Any:
    check_is_file(path, "safetensors file")
    try:
        return safe_open(path, "pt")
    except PermissionError as error:
        raise unreadable(path, error) from None
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a whole safetensors file ({error}); fetch or save it again.") from None
