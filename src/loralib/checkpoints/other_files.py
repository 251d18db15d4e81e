"""The files of a model's folder other than its weights: which of them go into a folder that is made of it.

All do, those in its folders too (sentence-transformers has modules there), but for what holds the model's weights a second
time, in another format, and for what version control and downloads keep; this library's own mark, locks and temporaries are not
part of it. A link that leads out of the folder is refused: what it leads to is not the model's.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import FormatError
from ..storage.folders import MARK
from ..storage.temporaries import LOCK, purpose
from .checkpoint import STEMS

_AGAIN = re.compile(  # names of files that hold a whole model: other copies of its weights
    r"((diffusion_)?(pytorch_)?model|consolidated|openvino_model)([-._].*)?\.(safetensors|bin|xml|pth?|index\.json)"
)
_EXPORTED = (".onnx", ".onnx_data", ".h5", ".msgpack", ".gguf", ".pth", ".ckpt", ".tflite", ".ot")
_NOT_OF_THE_MODEL = (".git", ".cache", "__pycache__")


@dataclass(frozen=True)
class OtherFiles:
    """What a folder holds apart from its weights, as paths within it. copied: what a folder made of it holds, too.
    left_out: what it does not."""

    copied: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def other_files(folder: Path, weights: set[Path]) -> OtherFiles:
    """What `folder` holds but for the files `weights`, those that are read."""
    copied: list[str] = []
    left_out: list[str] = []
    indices = {f"{stem}.index.json" for stem in STEMS}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if path in weights or name in indices or name == MARK or _is_of_a_write(path.name):
            continue
        leave = not path.is_file() or path.name in _NOT_OF_THE_MODEL or _holds_weights_again(path, path.parent == folder)
        (left_out if leave else copied).append(name + "/" * path.is_dir())
    return OtherFiles(tuple(copied), tuple(left_out))


def _is_of_a_write(name: str) -> bool:
    """Whether it is the name of a lock or of a temporary of this library."""
    return name == LOCK or purpose(name) != name


def _walk(folder: Path) -> Iterator[Path]:
    """The files below `folder`, in order, and folders that are not entered: links, and those of `_NOT_OF_THE_MODEL`."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and path.name not in _NOT_OF_THE_MODEL:
            yield from _walk(path)
        else:
            yield path


def _holds_weights_again(path: Path, on_top: bool) -> bool:
    """Whether it is another copy of the model's weights. In a folder, weights may be those of a module of its own."""
    exported = path.name.endswith(_EXPORTED) or path.name.startswith("openvino_model.")
    return exported or (on_top and _AGAIN.fullmatch(path.name) is not None)


def check_links(folder: Path) -> None:
    """`FormatError` when a link in `folder` leads out of it."""
    for path in _walk(folder):
        if path.is_symlink():
            _check_link(path, folder)


def _check_link(path: Path, folder: Path) -> None:
    """`FormatError` unless the link `path` leads to something in `folder`, or in the hub's cache to the same model's files."""
    inside, leads_to = [folder.resolve()], Path(os.path.realpath(path))
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    if not leads_to.exists() or not any(leads_to.is_relative_to(place) for place in inside):
        raise FormatError(
            f"{path} is a link that leads out of {folder}, to {leads_to}; put the file itself there, or take the link away. "
            "Nothing was written."
        )
