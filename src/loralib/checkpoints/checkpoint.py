"""A model's weights in files, read lazily: a folder as transformers writes it, or one file.

    model.safetensors                         or model-00001-of-00002.safetensors … and model.safetensors.index.json
    pytorch_model.bin                         or pytorch_model-00001-of-00002.bin … and pytorch_model.bin.index.json

and the same of diffusers (`diffusion_pytorch_model`). A tensor is mapped into memory and read when it is used.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ..errors import FormatError
from ..storage import hub
from ..storage.atomic import read_json
from ..storage.model_packages import GGUF
from ..storage.pickled import read_pickled
from ..storage.places import what_is_at
from ..storage.safetensors import CODES, read_header

STEMS = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin")
SAFE = ".safetensors"
_QUANTIZED_CONFIG = ("quantization_config", "compression_config")
_QUANTIZED_FILES = ("hf_quant_config.json", "quant_config.json", "quantize_config.json")
_QUANTIZED_TENSORS = frozenset({"SCB", "absmax", "qweight", "weight_packed", "weight_scale", "weight_scale_inv"})


@dataclass(frozen=True)
class Place:
    """Where a tensor lies, its dtype as a code of `storage.safetensors.DTYPES`, and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The weights at `path`. files: those that hold tensors, in order. tensors: by name. config: what `config.json` says, if
    there is one.

    >>> import tempfile, torch
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"proj.weight": torch.eye(2)}, folder + "/model.safetensors")
    ...     checkpoint = open_checkpoint(folder)
    ...     checkpoint.tensors["proj.weight"].shape, checkpoint.tensor("proj.weight").sum()
    ((2, 2), tensor(2.))
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Place]
    config: Mapping[str, Any] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, mapped into memory; `KeyError` when there is none."""
        place = self.tensors[name]
        if place.file.suffix != SAFE:
            return self._pickled[place.file][name]
        with safe_open(place.file, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    @property
    def is_quantized(self) -> bool:
        """Whether the files hold quantized weights, whose numbers mean something only with their scales: by what the
        configuration says, by a file that quantizers add, or by the names of the scales."""
        folder = self.path if self.path.is_dir() else self.path.parent
        named = any(self.config.get(key) for key in _QUANTIZED_CONFIG) or any((folder / f).is_file() for f in _QUANTIZED_FILES)
        return named or any(name.rpartition(".")[2] in _QUANTIZED_TENSORS for name in self.tensors)

    @cached_property
    def _pickled(self) -> dict[Path, dict[str, Tensor]]:
        return {file: _state_dict(file) for file in self.files if file.suffix != SAFE}


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The weights at `path`, a folder or a file; nothing but headers is read.

    Raises `FormatError` when there are none, when a shard that the index names is missing, or when a file is damaged.
    """
    path = hub.located(Path(path))
    files, named = _files(path)
    tensors: dict[str, Place] = {}
    for file in files:
        for name, place in _places(file).items():
            if name in tensors:
                raise FormatError(f"{path}: {name!r} is in both {tensors[name].file.name} and {file.name}.")
            tensors[name] = place
    if missing := sorted(named - tensors.keys()):
        raise FormatError(f"{path}: the index names {missing[0]!r}, which no file holds; fetch the checkpoint again.")
    return Checkpoint(path, tuple(files), tensors, _config(path))


def _files(path: Path) -> tuple[list[Path], set[str]]:
    """The files that hold tensors, and the names that the index says they hold."""
    if path.suffix.lower() == GGUF and path.is_file():
        raise _packed(path)
    if path.is_file():
        return [path], set()
    for stem in STEMS:
        if (path / stem).is_file():
            return [path / stem], set()
        index = path / f"{stem}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise FormatError(f"{index} has no weight_map; fetch the checkpoint again.")
            files = [path / name for name in dict.fromkeys(sorted(shards.values()))]
            for file in files:
                if file.parent != path or not file.is_file():
                    raise FormatError(f"{index} names {file.name!r}, which is not in {path}; fetch the checkpoint again.")
            return files, set(shards)
    if not path.is_dir():
        raise FormatError(
            f"{path} {what_is_at(path)}; {hub.advice(path) or 'give the folder of a model, or its file of weights'}."
        )
    if packed := sorted(path.glob(f"*{GGUF}")):
        raise _packed(packed[0])
    raise FormatError(
        f"{path} holds no weights of a model: expected a folder with {', '.join(STEMS)} or shards of one, or a file."
    )


def _packed(path: Path) -> FormatError:
    return FormatError(
        f"{path} is a GGUF file, whose weights are quantized; give the weights that it was made from, or a model that "
        "loralib train --save-merged true has written."
    )


def _places(file: Path) -> dict[str, Place]:
    if file.suffix == SAFE:
        return {name: Place(file, e.dtype, e.shape) for name, e in read_header(file).entries.items()}
    return {name: Place(file, CODES[t.dtype], tuple(t.shape)) for name, t in _state_dict(file).items()}


def _state_dict(file: Path) -> dict[str, Tensor]:
    content = read_pickled(file)
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) and t.dtype in CODES for t in content.values()):
        raise FormatError(f"{file} is not a state dict of tensors.")
    return content


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path.with_name("config.json")
    config = read_json(file) if file.is_file() else {}
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise FormatError(f"{file}: architectures={names!r}: must be a list of class names; fetch the model again.")
    return config
