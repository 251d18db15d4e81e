"""PEFT's folder: `adapter_config.json` and `adapter_model.safetensors`.

Tensor names, for a layer L and a tensor T trained in full:

    base_model.model.<L>.lora_A.weight        (r, in), or (r, in, *kernel) of a convolution
    base_model.model.<L>.lora_B.weight        (out, r), or (out, r, 1…)
    base_model.model.<L>.lora_embedding_A     (r, num_embeddings)
    base_model.model.<L>.lora_embedding_B     (embedding_dim, r)
    base_model.model.<L>.base_layer.bias      the bias of an adapted layer, where `bias` is not "none"
    base_model.model.<T>                      tensors of `modules_to_save`, other biases

What PEFT holds otherwise: an update of slices becomes the plain one with the same ΔW, and those of an
`nn.MultiheadAttention` one for its packed projection (see `peft_attention`). What it computes otherwise or not at all is
refused: grouped and transposed convolutions, loralib 0.1's factors of a convolution, bilinear layers.

Fields of the configuration that say how layers were *chosen* are not needed on reading (the tensors' names say it); fields
that change what a layer *computes* and are not known here are refused by name.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import patterns
from ..adapter import Adapter
from ..config import LoRAConfig
from ..errors import ConfigError, FormatError
from ..updates import ConvolutionUpdate, EmbeddingUpdate, LegacyConvolutionUpdate, LoRAUpdate, MergedUpdate
from .files import read_json, write_together
from .loralib import read_state_dict
from .peft_attention import apart, configured, joined, plain
from .tensor_file import read_tensors, tensor_bytes

CONFIG, TENSORS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
EXPECTED = f"a PEFT folder has {CONFIG} and {TENSORS}"

_PREFIX = "base_model.model."
_LINEAR, _EMBEDDING = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
_OURS = tuple(f.name for f in dataclasses.fields(LoRAConfig) if f.name not in ("enable_lora", "slice_widths"))
_METADATA = ("base_model_name_or_path", "task_type", "revision")
_HOW_CHOSEN = ("layers_to_transform", "layers_pattern", "ensure_weight_tying", "auto_mapping")
_NEUTRAL = {"peft_type": "LORA", "megatron_core": "megatron.core", "qalora_group_size": 16}
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # those that leave the base weights as they were
_FREE = ("peft_version", "inference_mode", "runtime_config", "eva_config", "loftq_config", "init_lora_weights")


def detect(path: Path) -> bool:
    """Whether `path` is a folder with PEFT's configuration file."""
    return (path / CONFIG).is_file()


def read(path: Path) -> Adapter:
    """The adapter in the folder `path`; `FormatError` when it is damaged or asks for what cannot be represented."""
    values = read_json(path / CONFIG)
    _refuse_unknown(path / CONFIG, values)
    try:
        config = LoRAConfig(**{key: values[key] for key in _OURS if values.get(key) is not None})
    except ConfigError as error:
        raise FormatError(f"{path / CONFIG}: {error}") from None
    factors, tensors = _sort(path / TENSORS, _read_stored(path))
    layers = apart({name: _update(path, name, pair, config) for name, pair in factors.items()})
    if not layers:
        raise FormatError(f"{path / TENSORS} holds no LoRA factors; it is no LoRA adapter.")
    metadata = {key: str(values[key]) for key in _METADATA if values.get(key) is not None}
    return Adapter(config, layers, tensors, metadata)


def write(adapter: Adapter, path: Path) -> None:
    """Write the folder `path`, made when it is missing."""
    if not adapter.layers:
        raise FormatError("The adapter adapts no layer, and PEFT reads no such adapter. Nothing was written.")
    layers = joined({name: _representable(name, update) for name, update in adapter.layers.items()})
    tensors = {}
    for name, update in layers.items():
        key_A, key_B = _EMBEDDING if isinstance(update, EmbeddingUpdate) else _LINEAR
        tensors[f"{_PREFIX}{name}.{key_A}"], tensors[f"{_PREFIX}{name}.{key_B}"] = update.A, update.B
    inner = {plain(name): name for name in layers}
    for name, tensor in adapter.tensors.items():
        layer, _, leaf = name.rpartition(".")
        parts = [inner[layer], "base_layer", leaf] if leaf == "bias" and layer in inner else [layer, leaf]
        tensors[_PREFIX + ".".join(part for part in parts if part)] = tensor
    config = json.dumps(_config(adapter, layers), indent=2, sort_keys=True) + "\n"
    path.mkdir(parents=True, exist_ok=True)
    write_together({path / TENSORS: tensor_bytes(tensors, {"format": "pt"}), path / CONFIG: config.encode()})


def _representable(name: str, update: LoRAUpdate) -> LoRAUpdate:
    """`update` in a form that PEFT computes with; `FormatError` when it has none."""
    if isinstance(update, MergedUpdate):
        return update.plain()
    odd = {
        "has factors as loralib 0.1 makes them for convolutions": isinstance(update, LegacyConvolutionUpdate),
        "is for a convolution with groups, which PEFT computes otherwise": getattr(update, "groups", 1) > 1,
        "is for a transposed convolution": getattr(update, "transposed", False),
        "is for a bilinear layer": type(update) is LoRAUpdate and update.A.dim() > 2,
    }
    for what, is_so in odd.items():
        if is_so:
            raise FormatError(
                f"The update of {name!r} {what}; PEFT cannot hold it. torch.save(lora_state_dict(model), path) can. "
                "Nothing was written."
            )
    return update


def _config(adapter: Adapter, updates: Mapping[str, LoRAUpdate]) -> dict[str, Any]:
    """PEFT's configuration for `adapter`: its patterns give every layer the rank and alpha that its tensors have."""
    r, lora_alpha = (
        Counter(getattr(update, key) for update in updates.values()).most_common(1)[0][0] for key in ("r", "lora_alpha")
    )
    if foreign := adapter.metadata.keys() - set(_METADATA):
        raise FormatError(f"PEFT's configuration has no place for the metadata {sorted(foreign)}. Nothing was written.")
    if len({update.use_rslora for update in updates.values()}) > 1:
        raise FormatError(
            "Some layers scale by lora_alpha / √r and some by lora_alpha / r, which PEFT cannot hold. Nothing was written."
        )
    named = {name: update for name, update in updates.items() if configured(name) == name}
    config = {name: value for name, value in adapter.config.to_dict().items() if name in _OURS} | {
        "r": r,
        "lora_alpha": lora_alpha,
        "target_modules": list(named),
        "exclude_modules": None,
        "rank_pattern": {patterns.exactly(name): u.r for name, u in named.items() if u.r != r},
        "alpha_pattern": {patterns.exactly(name): u.lora_alpha for name, u in named.items() if u.lora_alpha != lora_alpha},
        "use_rslora": next(iter(updates.values())).use_rslora,
    }
    fixed = {"peft_type": "LORA", "inference_mode": True, "init_lora_weights": True}
    return config | fixed | {key: adapter.metadata.get(key) for key in _METADATA}


def _read_stored(path: Path) -> dict[str, Tensor]:
    """The tensors of the folder; before version 0.7 PEFT pickled them."""
    if (path / TENSORS).is_file():
        return read_tensors(path / TENSORS)[0]
    if (path / PICKLED).is_file():
        return read_state_dict(path / PICKLED)
    raise FormatError(f"{path} has {CONFIG} but no {TENSORS}; fetch or save the adapter again.")


def _refuse_unknown(path: Path, values: dict[str, Any]) -> None:
    if values.get("peft_type") != "LORA":
        raise FormatError(f"{path}: peft_type={values.get('peft_type')!r}; only LORA adapters can be read.")
    start = values.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise FormatError(
            f"{path}: init_lora_weights={start!r} changes the base weights; convert the adapter to plain LoRA with PEFT first."
        )
    for key, value in values.items():
        if key in (*_OURS, *_METADATA, *_HOW_CHOSEN, *_FREE) or not value or value == _NEUTRAL.get(key):
            continue
        raise FormatError(f"{path}: {key}={value!r} asks for something that this library does not compute.")


def _sort(path: Path, stored: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The factors by layer, and the other tensors, by the names they have in the model."""
    factors: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        if not key.startswith(_PREFIX):
            raise FormatError(f"{path}: tensor {key!r} has no PEFT name (those start with {_PREFIX!r}).")
        parts = key.removeprefix(_PREFIX).split(".")
        name, _, factor = key.removeprefix(_PREFIX).rpartition(".lora_")
        if f"lora_{factor}" in (*_LINEAR, *_EMBEDDING):
            factors.setdefault(name, {})[f"lora_{factor}"] = tensor
        elif any(part.startswith("lora_") for part in parts):
            raise FormatError(f"{path}: tensor {key!r} belongs to a kind of layer that cannot be represented.")
        elif "original_module" not in parts:
            tensors[_plain_name(parts)] = tensor
    return factors, tensors


def _plain_name(parts: list[str]) -> str:
    """The model's own name of a tensor that PEFT's wrappers hold."""
    plain = [part for part in parts if part not in ("base_layer", "modules_to_save")]
    if "modules_to_save" in parts and "default" in plain:
        plain.remove("default")
    return ".".join(plain)


def _update(path: Path, name: str, pair: dict[str, Tensor], config: LoRAConfig) -> LoRAUpdate:
    where = f"{path / TENSORS}: layer {name!r}"
    keys = _EMBEDDING if pair.keys() & set(_EMBEDDING) else _LINEAR
    if missing := [key for key in keys if key not in pair]:
        raise FormatError(f"{where} has no {missing[0]}.")
    A, B = (pair[key] for key in keys)
    for factor in (A, B):
        if factor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise FormatError(f"{where} has factors of dtype {factor.dtype}; expected float32, float16, bfloat16 or float64.")
    name = configured(name)
    r = patterns.lookup(config.rank_pattern, name, config.r)
    kind = EmbeddingUpdate if keys is _EMBEDDING else ConvolutionUpdate if B.dim() > 2 else LoRAUpdate
    try:
        update = kind(A, B, patterns.lookup(config.alpha_pattern, name, config.lora_alpha), config.use_rslora)
    except ConfigError as error:
        raise FormatError(f"{where}: {error}") from None
    if update.r != r:
        raise FormatError(f"{where} has factors of rank {update.r}, but {CONFIG} says r={r}.")
    return update
