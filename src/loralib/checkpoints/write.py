"""The bytes of merged files: one safetensors file is filled by pieces of work that may run side by side.

What an adapter does not change is copied by the system; what it changes is read, computed and written by blocks.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.soundness import overflowed
from ..adapters.token_rows import TokenRows
from ..errors import FormatError
from ..storage.safetensors import DTYPES, Entry, header_bytes, laid_out, read_header
from ..tensors import as_bytes
from .checkpoint import SAFE, Checkpoint
from .merge_blocks import Block, blocks_of
from .merge_plan import Target

CHUNK = 16 << 20  # bytes that one piece of work copies

Task = Callable[[], int]


@contextlib.contextmanager
def file_of(checkpoint: Checkpoint, targets: Sequence[Target], path: Path) -> Iterator[list[Task]]:
    """Context manager: the work that fills the file `path` with `targets`; at the end it is on the disk.

    Each piece of work returns how many bytes it has written.
    """
    entries = laid_out((target.name, target.dtype, target.shape, target.nbytes) for target in targets)
    header = header_bytes(entries, _metadata(checkpoint, targets))
    sources = _Sources(checkpoint, targets)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        os.truncate(descriptor, len(header) + max((entry.end for entry in entries.values()), default=0))
        _write_all(descriptor, memoryview(header), 0)
        yield [task for t in targets for task in _tasks(sources, t, descriptor, len(header) + entries[t.name].start)]
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        sources.close()
        os.close(descriptor)


def _metadata(checkpoint: Checkpoint, targets: Sequence[Target]) -> dict[str, str]:
    file = next((checkpoint.tensors[target.source].file for target in targets if target.source), None)
    kept = read_header(file).metadata if file is not None and file.suffix == SAFE else {}
    return {"format": "pt"} | dict(kept)


class _Sources:
    """Bytes of the base's tensors, read from the files without mapping them."""

    def __init__(self, checkpoint: Checkpoint, targets: Sequence[Target]):
        self.checkpoint = checkpoint
        self._files: dict[Path, tuple[int, dict[str, Entry], int]] = {}
        for file in {checkpoint.tensors[target.source].file for target in targets if target.source}:
            if file.suffix == SAFE:
                header = read_header(file)
                self._files[file] = (os.open(file, os.O_RDONLY), dict(header.entries), header.size)

    def close(self) -> None:
        """Close the files."""
        for descriptor, _, _ in self._files.values():
            os.close(descriptor)

    def place(self, name: str) -> tuple[int, int] | None:
        """The open file that holds the tensor `name`, and where in it that begins; None for a pickled one."""
        file = self.checkpoint.tensors[name].file
        if file not in self._files:
            return None
        descriptor, entries, size = self._files[file]
        return descriptor, size + entries[name].start

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the tensor `name`."""
        place = self.checkpoint.tensors[name]
        where = self.place(name)
        if where is None:
            return self.checkpoint.tensor(name)[start:stop]
        rows = torch.empty((stop - start, *place.shape[1:]), dtype=DTYPES[place.dtype])
        if rows.numel():
            _read_all(where[0], _view(rows), where[1] + start * (rows.nbytes // len(rows)))
        return rows


def _tasks(sources: _Sources, target: Target, out: int, at: int) -> Iterator[Task]:
    """The pieces of work that write `target` to the open file `out` from `at` on."""
    if target.is_copy:
        where = sources.place(target.source)
        if where is None:
            yield lambda: _put_tensor(sources.checkpoint.tensor(target.source), out, at)
        else:
            for start in range(0, target.nbytes, CHUNK):
                size = min(CHUNK, target.nbytes - start)
                yield lambda start=start, size=size: copy_bytes(*where, start, size, out, at)  # type: ignore[misc]
    elif target.value is not None and not target.changes:
        yield lambda: _put_tensor(_with_rows(_cast(target), 0, target.rows), out, at)
    else:
        for block in blocks_of(target.shape, target.changes):
            yield lambda block=block: _put_block(sources, target, block, out, at)  # type: ignore[misc]


def _cast(target: Target) -> Tensor:
    assert target.value is not None
    cast = target.value.to(DTYPES[target.dtype])
    _check_range(target, target.value, cast)
    return cast


def _check_range(target: Target, before: Tensor, after: Tensor) -> None:
    """`FormatError` when finite numbers became infinite ones."""
    if problem := overflowed(before, after):
        raise FormatError(f"{target.name!r} cannot be merged: {problem}. Nothing was written.")


def _put_block(sources: _Sources, target: Target, block: Block, out: int, at: int) -> int:
    first, last = block.first, block.last
    W = _cast(target)[first:last] if target.value is not None else sources.rows(target.source, first, last)
    changed = block.effective_rows(W)
    if block.change is not None:
        _check_range(target, W, changed)
    rows = _with_rows(changed, first, target.rows)
    return _put_tensor(rows, out, at + first * (rows.nbytes // max(1, len(rows))))


def _with_rows(block: Tensor, first: int, rows: TokenRows | None) -> Tensor:
    """`block`, which begins with row `first`, with those of its rows replaced that `rows` has."""
    inside = [i for i, index in enumerate(rows.indices) if first <= index < first + len(block)] if rows else []
    if rows and inside:
        block = block.clone()
        block[[rows.indices[i] - first for i in inside]] = rows.values[inside].to(block.dtype)
    return block


def _put_tensor(tensor: Tensor, out: int, at: int) -> int:
    if tensor.numel():
        _write_all(out, _view(tensor), at)
    return tensor.nbytes


def _view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous `tensor`, not a copy of them."""
    return memoryview(as_bytes(tensor).numpy())  # type: ignore[arg-type]


def copy_bytes(source: int, begin: int, start: int, size: int, out: int, at: int) -> int:
    """Copy bytes from file to file, within the system where that can."""
    done = 0
    try:
        while done < size:
            copied = os.copy_file_range(source, out, size - done, begin + start + done, at + start + done)
            if not copied:
                break
            done += copied
    except (OSError, AttributeError):
        pass  # another file system, or none of its kind: what is left is read and written
    if done < size:
        view = memoryview(bytearray(size - done))
        _read_all(source, view, begin + start + done)
        _write_all(out, view, at + start + done)
    return size


def _read_all(descriptor: int, view: memoryview, at: int) -> None:
    while len(view):
        count = os.preadv(descriptor, [view], at)
        if not count:
            raise OSError("the file became shorter while it was read")
        view, at = view[count:], at + count


def _write_all(descriptor: int, view: memoryview, at: int) -> None:
    while len(view):
        count = os.pwrite(descriptor, view, at)
        view, at = view[count:], at + count
