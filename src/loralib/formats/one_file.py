"""One safetensors file that holds any adapter, byte for byte: docs/format.md says how.

The tensors are `layers.<layer>.lora_A`, `layers.<layer>.lora_B`, `layers.<layer>.lora_magnitude`, `tensors.<name>` and
`rows.<name>`; everything else is one JSON object under the key `loralib` of the file's metadata.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters import convolution_updates, embedding_update, experts_update, fused_update, updates
from ..adapters.adapter import Adapter
from ..adapters.token_rows import TokenRows
from ..adapters.updates import LoRAUpdate
from ..config import LoRAConfig
from ..errors import ConfigError, FormatError
from ..storage.atomic import write_atomically
from ..storage.safetensors import tensor_bytes
from .opened import Opened
from .validation import PARTS, made, parts_of

EXPECTED = "a one-file adapter is a .safetensors file with 'loralib' in its metadata"

_KEY, _VERSION = "loralib", 2
_KINDS = {
    kind.kind: kind
    for kind in (
        updates.LoRAUpdate,
        embedding_update.EmbeddingUpdate,
        convolution_updates.ConvolutionUpdate,
        convolution_updates.LegacyConvolutionUpdate,
        convolution_updates.LegacyTransposedUpdate,
        fused_update.FusedUpdate,
        experts_update.ExpertsUpdate,
        updates.ProjectionUpdate,
    )
}
_PLACES = ("config", "layers", "metadata", "rows")
_OF_ALL = {"kind", "lora_alpha", "use_rslora"}


def detect(opened: Opened) -> bool:
    """Whether it is a file of this format."""
    return opened.is_safetensors and _KEY in opened.metadata


def read(opened: Opened, config: LoRAConfig | None = None) -> Adapter:
    """The adapter in the file; `FormatError` when it is damaged, or of another version."""
    path, tensors = opened.path, opened.mapped()
    described = _parsed(path, opened.metadata.get(_KEY, ""))
    layers, expected = {}, {f"rows.{name}" for name in described["rows"]}
    for name, values in described["layers"].items():
        held = {part: tensors[key] for part in PARTS if (key := f"layers.{name}.{part}") in tensors}
        expected |= {f"layers.{name}.{part}" for part in held}
        layers[name] = _update(f"{path}: layer {name!r}", values, held)
    rows = {n: _rows(f"{path}: rows of {n!r}", indices, tensors.get(f"rows.{n}")) for n, indices in described["rows"].items()}
    extra = {key.removeprefix("tensors."): tensor for key, tensor in tensors.items() if key.startswith("tensors.")}
    if strays := sorted(tensors.keys() - expected - {f"tensors.{name}" for name in extra}):
        raise FormatError(f"{path} holds the tensor {strays[0]!r}, of which its description says nothing.")
    found = _config(path, described["config"])
    return Adapter(found, layers, extra, described["metadata"], rows, f"one-file adapter {path.name}")


def write(adapter: Adapter, path: Path) -> None:
    """Write the file `path`."""
    tensors: dict[str, Tensor] = {}
    for name, update in adapter.layers.items():
        tensors |= {f"layers.{name}.{part}": tensor for part, tensor in update.tensors().items()}
    tensors |= {f"tensors.{name}": tensor for name, tensor in adapter.tensors.items()}
    tensors |= {f"rows.{name}": rows.values for name, rows in adapter.rows.items()}
    described = {
        "version": _VERSION,
        "config": adapter.config.to_dict(),
        "layers": {name: _said(name, update) for name, update in adapter.layers.items()},
        "metadata": dict(adapter.metadata),
        "rows": {name: list(rows.indices) for name, rows in adapter.rows.items()},
    }
    content = json.dumps(described, sort_keys=True, separators=(",", ":"))
    write_atomically(path, tensor_bytes(tensors, {_KEY: content}))


def _said(name: str, update: LoRAUpdate) -> dict[str, Any]:
    if _KINDS.get(update.kind) is not type(update):
        raise FormatError(f"The update of {name!r} is a {type(update).__name__}, which no format knows. Nothing was written.")
    values = {"kind": update.kind, "lora_alpha": update.lora_alpha, "use_rslora": update.use_rslora}
    return values | {key: list(v) if isinstance(v, tuple) else v for key, v in update.own_fields()}


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the description of the adapter is not JSON ({error}).") from None
    version = described.get("version") if isinstance(described, dict) else None
    if version == 1:
        raise FormatError(
            f"{path} is of version 1 of the format, which only development versions of this library wrote; this one reads "
            f"version {_VERSION}: save the adapter again, from the model or with the version that wrote it to another format."
        )
    if not isinstance(described, dict) or version != _VERSION:
        raise FormatError(f"{path} is of version {version!r} of the format; this library reads version {_VERSION}.")
    for key in _PLACES:
        if not isinstance(described.get(key), dict):
            raise FormatError(f"{path}: {key!r} is missing from the description of the adapter, or no object.")
    if unknown := sorted(described.keys() - {"version", *_PLACES}):
        raise FormatError(f"{path}: {unknown[0]!r} in the description of the adapter has no meaning in version {_VERSION}.")
    if not all(isinstance(value, str) for value in described["metadata"].values()):
        raise FormatError(f"{path}: metadata that is not text.")
    return described


def _config(path: Path, values: Mapping[str, Any]) -> LoRAConfig:
    try:
        return LoRAConfig(**values)
    except (ConfigError, TypeError, OverflowError) as error:
        raise FormatError(f"{path}: {error}") from None


def _update(where: str, values: Any, tensors: Mapping[str, Tensor]) -> LoRAUpdate:
    described = values.get("kind") if isinstance(values, dict) else None
    kind = _KINDS.get(described) if isinstance(described, str) else None
    if kind is None:
        raise FormatError(f"{where} is of no known kind: {values!r:.80}.")
    own = _own_fields(kind)
    if values.keys() != _OF_ALL | own.keys() or not all(_has_type(values[key], type_) for key, type_ in own.items()):
        raise FormatError(f"{where} has other fields than a {kind.__name__}: {sorted(values)}.")
    fields = {key: tuple(values[key]) if type_ is tuple else values[key] for key, type_ in own.items()}
    parts = parts_of(where, tensors, {part: part for part in PARTS})
    return made(where, kind, parts, values["lora_alpha"], values["use_rslora"], **fields)


@functools.cache
def _own_fields(kind: type[LoRAUpdate]) -> dict[str, type]:
    """The fields that only `kind` has, with their types."""
    return {field.name: type(field.default) for field in dataclasses.fields(kind)[len(dataclasses.fields(LoRAUpdate)) :]}


def _has_type(value: Any, kind: type) -> bool:
    """Whether `value` is what JSON makes of a field of `kind`: a list of numbers or truth values for a tuple."""
    if kind is tuple:
        return isinstance(value, list) and all(type(item) in (int, bool) for item in value)
    if kind is float:
        return type(value) in (int, float) and value >= 0
    return type(value) is kind


def _rows(where: str, indices: Any, values: Tensor | None) -> TokenRows:
    if values is None or not isinstance(indices, list):
        raise FormatError(f"{where} are not whole.")
    try:
        return TokenRows(tuple(indices), values)
    except (ConfigError, TypeError) as error:
        raise FormatError(f"{where}: {error}") from None
