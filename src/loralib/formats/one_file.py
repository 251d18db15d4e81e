"""One safetensors file that holds any adapter, byte for byte: docs/format.md says how.

The tensors are `layers.<layer>.lora_A`, `layers.<layer>.lora_B`, `layers.<layer>.lora_magnitude`, `tensors.<name>` and
`rows.<name>`; everything else is one JSON object under the key `loralib` of the file's metadata.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters import updates
from ..adapters.adapter import Adapter
from ..adapters.token_rows import TokenRows
from ..adapters.updates import LoRAUpdate
from ..config import LoRAConfig
from ..errors import ConfigError, FormatError
from ..storage.atomic import write_atomically
from ..storage.safetensors import read_header, read_tensors, tensor_bytes
from .validation import made, pair

EXPECTED = "a one-file adapter is a .safetensors file with 'loralib' in its metadata"

_KEY, _VERSION = "loralib", 1
_KINDS = {
    kind.__name__: kind
    for kind in (
        updates.LoRAUpdate,
        updates.EmbeddingUpdate,
        updates.ConvolutionUpdate,
        updates.LegacyConvolutionUpdate,
        updates.FusedUpdate,
        updates.ProjectionUpdate,
    )
}
_PLACES = ("config", "layers", "metadata", "rows")
_OF_ALL = {"kind", "lora_alpha", "use_rslora"}


def detect(path: Path) -> bool:
    """Whether `path` is a file of this format."""
    try:
        return path.is_file() and _KEY in read_header(path).metadata
    except FormatError:
        return False


def read(path: Path, config: LoRAConfig | None = None) -> Adapter:
    """The adapter in the file `path`; `FormatError` when it is damaged, or of a later version."""
    tensors, metadata = read_tensors(path)
    said = _parsed(path, metadata.get(_KEY, ""))
    layers, rows = said["layers"], said["rows"]
    expected = {f"rows.{name}" for name in rows}
    found_layers = {}
    for name, values in layers.items():
        found_layers[name] = update = _update(f"{path}: layer {name!r}", name, values, tensors)
        expected |= {f"layers.{name}.{part}" for part in _parts(update)}
    found_rows = {
        name: _rows(f"{path}: rows of {name!r}", indices, tensors.get(f"rows.{name}")) for name, indices in rows.items()
    }
    beside = {key.removeprefix("tensors."): tensor for key, tensor in tensors.items() if key.startswith("tensors.")}
    if strays := sorted(tensors.keys() - expected - {f"tensors.{name}" for name in beside}):
        raise FormatError(f"{path} holds the tensor {strays[0]!r}, of which its description says nothing.")
    return Adapter(
        _config(path, said["config"]), found_layers, beside, said["metadata"], found_rows, f"one-file adapter {path.name}"
    )


def write(adapter: Adapter, path: Path) -> None:
    """Write the file `path`."""
    tensors: dict[str, Tensor] = {}
    for name, update in adapter.layers.items():
        tensors |= {f"layers.{name}.{part}": tensor for part, tensor in _parts(update).items()}
    tensors |= {f"tensors.{name}": tensor for name, tensor in adapter.tensors.items()}
    tensors |= {f"rows.{name}": rows.values for name, rows in adapter.rows.items()}
    said = {
        "version": _VERSION,
        "config": adapter.config.to_dict(),
        "layers": {name: _said(name, update) for name, update in adapter.layers.items()},
        "metadata": dict(adapter.metadata),
        "rows": {name: list(rows.indices) for name, rows in adapter.rows.items()},
    }
    content = json.dumps(said, sort_keys=True, separators=(",", ":"))
    write_atomically(path, tensor_bytes(tensors, {_KEY: content}))


def _parts(update: LoRAUpdate) -> dict[str, Tensor]:
    magnitude = {} if update.magnitude is None else {"lora_magnitude": update.magnitude}
    return {"lora_A": update.A, "lora_B": update.B} | magnitude


def _said(name: str, update: LoRAUpdate) -> dict[str, Any]:
    kind = type(update).__name__
    if _KINDS.get(kind) is not type(update):
        raise FormatError(f"The update of {name!r} is a {kind}, which no format knows. Nothing was written.")
    values = {"kind": kind, "lora_alpha": update.lora_alpha, "use_rslora": update.use_rslora}
    return values | {key: list(v) if isinstance(v, tuple) else v for key, v in update.own_fields()}


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the description of the adapter is not JSON ({error}).") from None
    if not isinstance(said, dict) or said.get("version") != _VERSION:
        version = said.get("version") if isinstance(said, dict) else None
        raise FormatError(f"{path} is of version {version!r} of the format; this library reads version {_VERSION}.")
    for key in _PLACES:
        if not isinstance(said.get(key), dict):
            raise FormatError(f"{path}: {key!r} is missing from the description of the adapter, or no object.")
    if unknown := sorted(said.keys() - {"version", *_PLACES}):
        raise FormatError(f"{path}: {unknown[0]!r} in the description of the adapter has no meaning in version {_VERSION}.")
    if not all(isinstance(value, str) for value in said["metadata"].values()):
        raise FormatError(f"{path}: metadata that is no text.")
    return said


def _config(path: Path, values: Mapping[str, Any]) -> LoRAConfig:
    try:
        return LoRAConfig(**values)
    except (ConfigError, TypeError, OverflowError) as error:
        raise FormatError(f"{path}: {error}") from None


def _update(where: str, name: str, values: Any, tensors: Mapping[str, Tensor]) -> LoRAUpdate:
    said = values.get("kind") if isinstance(values, dict) else None
    kind = _KINDS.get(said) if isinstance(said, str) else None
    if kind is None:
        raise FormatError(f"{where} is of no known kind: {values!r:.80}.")
    prefix = f"layers.{name}."
    A, B = pair(
        where, {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}, "lora_A", "lora_B"
    )
    own = {field.name: type(field.default) for field in dataclasses.fields(kind)[len(dataclasses.fields(LoRAUpdate)) :]}
    if values.keys() != _OF_ALL | own.keys() or not all(_has_type(values[key], kind) for key, kind in own.items()):
        raise FormatError(f"{where} has other fields than a {kind.__name__}: {sorted(values)}.")
    fields = {key: tuple(values[key]) if type_ is tuple else values[key] for key, type_ in own.items()}
    magnitude = tensors.get(f"{prefix}lora_magnitude")
    return made(where, kind, A, B, values["lora_alpha"], values["use_rslora"], magnitude, **fields)


def _has_type(value: Any, kind: type) -> bool:
    """Whether `value` is what JSON makes of a field of `kind`: a list of numbers or truth values for a tuple."""
    if kind is tuple:
        return isinstance(value, list) and all(type(item) in (int, bool) for item in value)
    return type(value) is kind


def _rows(where: str, indices: Any, values: Tensor | None) -> TokenRows:
    if values is None or not isinstance(indices, list):
        raise FormatError(f"{where} are not whole.")
    try:
        return TokenRows(tuple(indices), values)
    except (ConfigError, TypeError) as error:
        raise FormatError(f"{where}: {error}") from None
