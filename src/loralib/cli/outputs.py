"""Where an adapter may be written: to a new place, or with --overwrite over an adapter or among other files."""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..errors import ConfigError, FormatError
from ..storage.atomic import settle
from ..storage.lock import file_lock, folder_lock
from ..storage.temporaries import LOCK, purpose

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_SAFE = ".safetensors"
_IN_FOLDERS = ("peft", "diffusers")


def targets(output: Path, format: str) -> list[Path]:
    """The files that an adapter at `output` consists of, in the order in which they are written."""
    from ..formats import diffusers, peft

    if format == "peft":
        return [output / name for name in peft.FILES]
    return [output / diffusers.FILE] if format == "diffusers" and output.suffix != _SAFE else [output]


@contextlib.contextmanager
def free_output(output: Path, format: str, overwrite: bool, inputs: Sequence[Path]) -> Iterator[None]:
    """Context manager: reserve `output` for writing an adapter; no other process writes there meanwhile.

    What a killed process left there is finished or undone. Raises `ConfigError` where `output` is of the wrong kind for
    `format`, is one of the `inputs`, or is there already without `overwrite`; `RunError` when another process writes it.
    """
    if problem := _misnamed(output, format):
        raise ConfigError(f"-o {output}: {problem}.")
    files = targets(output, format)
    read = [file for path in inputs for file in (path, *(path.iterdir() if path.is_dir() else ()))]
    if any(same_file(mine, its) for mine in (output, *files) for its in read):
        raise ConfigError(f"-o {output}: that is what is read; give another place.")
    in_folder = files[0] != output
    with folder_lock(output, whole=False) if in_folder else file_lock(output):
        for form in _IN_FOLDERS if in_folder else (format,):
            settle(targets(output, form))
        taken = [file for file in files if file.exists()]
        if taken and not overwrite:
            raise ConfigError(f"{taken[0]} exists; add --overwrite to replace it, or give another place.")
        for file in taken:
            _check_replaceable(output if len(files) > 1 else file)
        if in_folder:
            _check_alone(output, [file.name for file in files], overwrite)
        yield


def _check_alone(folder: Path, own: Collection[str], overwrite: bool) -> None:
    """Raise `ConfigError` for a folder with an adapter of another format or, without `overwrite`, with any other files. Those
    are never changed."""
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in held if name != LOCK and purpose(name) not in own]
    known = {file.name for format in _IN_FOLDERS for file in targets(folder, format)}
    if adapters := [name for name in others if name in known]:
        raise ConfigError(
            f"{folder} holds an adapter of another format ({', '.join(adapters)}); give another place, or remove it yourself."
        )
    if others and not overwrite:
        shown = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
        raise ConfigError(
            f"{folder} holds other files ({shown}); give another place, or add --overwrite to write the adapter among them."
        )


def _check_replaceable(path: Path) -> None:
    """Raise `ConfigError` unless `path` is an adapter in a known format; --overwrite replaces nothing else."""
    from .. import formats

    try:
        formats.open(path)
    except FormatError:
        raise ConfigError(
            f"{path} is not an adapter, so --overwrite does not replace it; give another place, or remove it yourself."
        ) from None


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths lead to the same file, which exists."""
    return a.exists() and b.exists() and os.path.samefile(a, b)


def _misnamed(output: Path, format: str) -> str | None:
    """Why `output` does not fit `format`, or None."""
    in_folder = len(targets(output, format)) > 1 or targets(output, format)[0] != output
    if in_folder and (output.suffix in _SUFFIXES or (output.exists() and not output.is_dir())):
        return f"{format} is a folder; give the name of one, or choose another --format"
    if not in_folder and output.is_dir():
        return f"that is a folder, and {format} is a file; give the name of one"
    if format in ("safetensors", "kohya") and output.suffix != _SAFE:
        return f"files of this format end in {_SAFE}"
    if format == "loralib" and output.suffix == _SAFE:
        return "checkpoints of loralib 0.1 are not safetensors files; end the name in .pt"
    return None
