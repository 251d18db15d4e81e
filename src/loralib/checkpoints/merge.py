"""Merging an adapter into a model's files, file to file: no model is built, and no weight is in memory as a whole.

Every file of weights becomes one of the same name (a pickled one a safetensors file) with the same tensors, in which the
adapted ones are W + ΔW, computed in blocks of rows by several threads (see `blocks`); what is not adapted is copied by the
system. The other files beside them are copied. All of it is written to a folder beside the place it is for, and renamed at the
end.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.token_rows import TokenRows
from ..errors import ConfigError, FormatError
from ..storage.atomic import sync_folder
from ..storage.safetensors import DTYPES, Entry, header_bytes, laid_out, read_header
from ..tensors import as_bytes
from .checkpoint import SAFE, Checkpoint, open_checkpoint
from .merge_blocks import add_updates, row_blocks
from .merge_plan import Plan, Target, Tied, planned

Progress = Callable[[int, int], None]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt", ".index.json")
_CHUNK = 16 << 20


@dataclass(frozen=True)
class MergeReport:
    """What was merged: layers adapted, tensors changed (those trained in full included), files of weights and their bytes,
    tensors that were added, and whether the output layer was untied from the embedding."""

    path: Path
    layers: int
    tensors: int
    files: int
    nbytes: int
    added: tuple[str, ...] = ()
    untied: bool = False


def merge_checkpoint(
    base: str | os.PathLike[str],
    adapter: Adapter,
    output: str | os.PathLike[str],
    *,
    tied: Tied = "refuse",
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Write to the folder `output` the model at `base`, a folder or a file of weights, with `adapter` merged into it.

    Every W + ΔW is computed in at least float32 and rounded once to the dtype of W, as `merge` does in a model. Tensors trained
    in full take the places of the base's, or are added; rows of tokens replace rows. threads: default, one for each core.
    tied: what to do when an update is for an embedding that the output layer shares, or for that layer: "refuse", or "untie",
    which writes both and says so in `config.json`. force: replace what is at `output`. progress: called with bytes done and
    bytes in all.

    Memory: the adapter, and a few blocks of 2 MiB a thread (for DoRA and 0.1's and transposed convolutions, whole weights).
    Raises `FormatError`, listing everything, when the adapter does not fit the checkpoint or that is quantized; `OSError` when
    the disk is full. Nothing is then left behind, nor after Ctrl-C.

    >>> import tempfile, loralib as lora
    >>> from safetensors.torch import load_file, save_file
    >>> adapter = lora.Adapter(lora.LoRAConfig(r=1), {"proj": lora.LoRAUpdate(torch.ones(1, 2), torch.ones(2, 1), 1)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"proj.weight": torch.eye(2)}, folder + "/model.safetensors")
    ...     report = merge_checkpoint(folder + "/model.safetensors", adapter, folder + "/merged")
    ...     load_file(folder + "/merged/model.safetensors")["proj.weight"]
    tensor([[2., 1.],
            [1., 2.]])
    """
    output = Path(output)
    if tied not in ("refuse", "untie"):
        raise ConfigError(f"tied={tied!r}: must be 'refuse' or 'untie'.")
    _check_place(output, Path(base), force)
    plan = planned(open_checkpoint(base), adapter, tied)
    work = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    missing = [folder for folder in output.parents if not folder.exists()]
    try:
        work.mkdir(parents=True)
        _write(plan, work, threads or os.cpu_count() or 1, progress or (lambda done, total: None))
        _put(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for folder in missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    targets = plan.targets()
    return MergeReport(
        output,
        len(adapter.layers),
        sum(not target.is_copy for target in targets),
        len(plan.files),
        sum(target.nbytes for target in targets),
        tuple(target.name for target in targets if not target.source),
        plan.untied,
    )


def _check_place(output: Path, base: Path, force: bool) -> None:
    """`FormatError` when the result may not be put at `output`: only a model's folder is replaced, and that only by `force`."""
    if not output.exists():
        return
    if not force:
        raise FormatError(f"{output} exists; choose another place, or force the replacement. Nothing was written.")
    if base.resolve().is_relative_to(output.resolve()):
        raise FormatError(f"{output} is or holds the base, which would be lost; choose another place. Nothing was written.")
    if output.is_dir() and any(path.is_dir() for path in output.iterdir()):
        raise FormatError(f"{output} holds folders, which no result of this has; remove it yourself. Nothing was written.")


# --- writing --------------------------------------------------------------------------------------------------------


def _write(plan: Plan, work: Path, threads: int, progress: Progress) -> None:
    total = sum(target.nbytes for target in plan.targets())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool, torch.no_grad():
            done = 0
            for name, targets in plan.files.items():
                with _written(plan.checkpoint, targets, work / name) as tasks:
                    futures = [pool.submit(task) for task in tasks]
                    try:
                        for future in futures:
                            done += future.result()
                            progress(done, total)
                    except BaseException:
                        for future in futures:
                            future.cancel()
                        raise
    finally:
        torch.set_num_threads(before)
    _copy_others(plan, work)
    sync_folder(work)


@contextlib.contextmanager
def _written(checkpoint: Checkpoint, targets: list[Target], path: Path) -> Iterator[list[Callable[[], int]]]:
    """The work that fills the file `path`, in pieces that may run side by side; at the end it is on the disk."""
    entries = laid_out((target.name, target.dtype, target.shape, target.nbytes) for target in targets)
    metadata = _metadata(checkpoint, targets)
    header = header_bytes(entries, metadata)
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


def _metadata(checkpoint: Checkpoint, targets: list[Target]) -> dict[str, str]:
    file = next((checkpoint.tensors[target.source].file for target in targets if target.source), None)
    kept = read_header(file).metadata if file is not None and file.suffix == SAFE else {}
    return {"format": "pt"} | dict(kept)


class _Sources:
    """Bytes of the base's tensors, read from the files without mapping them."""

    def __init__(self, checkpoint: Checkpoint, targets: list[Target]):
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
            view = _view(rows)
            _read_all(where[0], view, where[1] + start * (rows.nbytes // len(rows)))
        return rows


def _tasks(sources: _Sources, target: Target, out: int, at: int) -> Iterator[Callable[[], int]]:
    """The pieces of work that write `target` to the open file `out` from `at` on; each returns its number of bytes."""
    if target.is_copy:
        where = sources.place(target.source)
        if where is None:
            yield lambda: _put_tensor(sources.checkpoint.tensor(target.source), out, at)
        else:
            for start in range(0, target.nbytes, _CHUNK):
                size = min(_CHUNK, target.nbytes - start)
                yield lambda start=start, size=size: _copy(*where, start, size, out, at)  # type: ignore[misc]
    elif target.value is not None and not target.changes:
        yield lambda: _put_tensor(_with_rows(_cast(target), 0, target.rows), out, at)
    else:
        for first, last in row_blocks(target.shape, target.changes):
            yield lambda first=first, last=last: _changed(sources, target, first, last, out, at)  # type: ignore[misc]


def _cast(target: Target) -> Tensor:
    assert target.value is not None
    return target.value.to(DTYPES[target.dtype])


def _changed(sources: _Sources, target: Target, first: int, last: int, out: int, at: int) -> int:
    W = _cast(target)[first:last] if target.value is not None else sources.rows(target.source, first, last)
    rows = _with_rows(add_updates(W, first, target.changes), first, target.rows)
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


def _copy(source: int, begin: int, start: int, size: int, out: int, at: int) -> int:
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


def _copy_others(plan: Plan, work: Path) -> None:
    """Copy what lies beside the weights, and write the index and, where it changed, the configuration."""
    base = plan.checkpoint.path
    if base.is_dir():
        for file in sorted(base.iterdir()):
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, work / file.name)
    if plan.untied:
        (work / "config.json").write_text(json.dumps(dict(plan.config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if len(plan.files) > 1:
        stem = "diffusion_pytorch_model" if next(iter(plan.files)).startswith("diffusion") else "model"
        weight_map = {target.name: file for file, targets in plan.files.items() for target in targets}
        total = sum(target.nbytes for target in plan.targets())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (work / f"{stem}{SAFE}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _put(work: Path, output: Path) -> None:
    """Let the finished folder take its place; what was there is removed only then, and put back where that fails."""
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    if output.exists():
        output.replace(old)
    try:
        work.replace(output)
    except OSError:
        if old.exists():
            old.replace(output)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)
    sync_folder(output.parent)
