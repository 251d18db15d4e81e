"""PEFT's folder: `adapter_config.json` and `adapter_model.safetensors` (`adapter_model.bin` before version 0.7).

Tensor names, for a layer L and a tensor T trained in full:

    base_model.model.<L>.lora_A.weight            (r, in), or (r, in, *kernel) of a convolution
    base_model.model.<L>.lora_B.weight            (out, r), or (out, r, 1…)
    base_model.model.<L>.lora_embedding_A         (r, num_embeddings)
    base_model.model.<L>.lora_embedding_B         (embedding_dim, r)
    base_model.model.<L>.lora_magnitude_vector    (out,), or (1, out, 1…) of a convolution: DoRA
    base_model.model.<L>.base_layer.bias          the bias of an adapted layer, where `bias` is not "none"
    base_model.model.<T>                          tensors of `modules_to_save`, other biases
    base_model.model.<L>.token_adapter.trainable_tokens_delta     rows `trainable_token_indices` of L's weight, anew

Before version 0.3 `enable_lora` chose slices of a fused projection, as loralib 0.1 does: A (n·r, in), B (n·out/N, r, 1).

What PEFT holds otherwise: an update of slices becomes the plain one with the same ΔW, and those of an
`nn.MultiheadAttention` one for its packed projection (see `peft_attention`). What it computes otherwise or not at all is
refused: grouped and transposed convolutions, bilinear layers.

Fields of the configuration that say how layers were *chosen* are not needed on reading (the tensors' names say it); fields
that change what a layer *computes* and are not known here are refused by name.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import patterns
from ..adapter import Adapter, TokenRows, described
from ..config import LoRAConfig
from ..errors import ConfigError, FormatError
from ..updates import ConvolutionUpdate, EmbeddingUpdate, LoRAUpdate, MergedUpdate, ProjectionUpdate
from .checked import common_form, made, pair
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
_ROWS = "token_adapter.trainable_tokens_delta"
_MAGNITUDE = "lora_magnitude_vector"
_ELSEWHERE = ("use_dora", "trainable_token_indices", "enable_lora", "merge_weights")  # read where the tensors are
_HOW_CHOSEN = ("layers_to_transform", "layers_pattern", "ensure_weight_tying", "auto_mapping")
_NEUTRAL = {"peft_type": "LORA", "megatron_core": "megatron.core", "qalora_group_size": 16}
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # those that leave the base weights as they were
_FREE = ("peft_version", "inference_mode", "runtime_config", "eva_config", "loftq_config", "init_lora_weights")


def detect(path: Path) -> bool:
    """Whether `path` is a folder with PEFT's configuration file, or the file of tensors in one."""
    return (_folder(path) / CONFIG).is_file()


def _folder(path: Path) -> Path:
    return path.parent if path.name in (TENSORS, PICKLED) and path.is_file() else path


def read(path: Path, config: LoRAConfig | None = None) -> Adapter:
    """The adapter in the folder `path`; `FormatError` when it is damaged or asks for what cannot be represented."""
    path = _folder(path)
    values = read_json(path / CONFIG)
    refuse_unknown(path / CONFIG, values)
    try:
        found = configuration(values)
    except (ConfigError, TypeError, OverflowError) as error:
        raise FormatError(f"{path / CONFIG}: {error}") from None
    factors, tensors, rows = _sort(path / TENSORS, _read_stored(path))
    layers = apart({name: _update(path, name, parts, found) for name, parts in factors.items()})
    if not layers:
        raise FormatError(f"{path / TENSORS} holds no LoRA factors; it is no LoRA adapter.")
    dora = [update.magnitude is not None for update in layers.values()]
    if any(dora) != bool(values.get("use_dora")) or (any(dora) and not all(dora)):
        raise FormatError(f"{path}: use_dora={values.get('use_dora')}, but {sum(dora)} of {len(dora)} layers have magnitudes.")
    metadata = {key: str(values[key]) for key in _METADATA if values.get(key) is not None}
    indices = values.get("trainable_token_indices")
    if indices and not rows:
        raise FormatError(f"{path}: trainable_token_indices={indices!r:.80}, but {TENSORS} holds no rows of tokens.")
    of_tokens = {f"{name}.weight": _rows(path, name, delta, indices) for name, delta in rows.items()}
    return Adapter(found, layers, tensors, metadata, of_tokens, f"PEFT folder {path.name or path}")


def configuration(values: Mapping[str, Any]) -> LoRAConfig:
    """What the fields of PEFT's configuration say, those of its first versions included; `ConfigError` where they cannot be."""
    found = LoRAConfig(**{key: values[key] for key in _OURS if values.get(key) is not None})
    return dataclasses.replace(found, enable_lora=values["enable_lora"]) if values.get("enable_lora") else found


def _rows(path: Path, name: str, values: Tensor, indices: Any) -> TokenRows:
    if isinstance(indices, dict):
        indices = next((chosen for ending, chosen in indices.items() if patterns.ends_with(name, ending)), None)
    try:
        return TokenRows(tuple(indices), values)
    except (ConfigError, TypeError) as error:
        raise FormatError(f"{path / CONFIG}: trainable_token_indices={indices!r:.80} for {name!r}: {error}") from None


def write(adapter: Adapter, path: Path) -> None:
    """Write the folder `path`, made when it is missing."""
    if not adapter.layers:
        raise FormatError("The adapter adapts no layer, and PEFT reads no such adapter. Nothing was written.")
    layers = joined({name: _representable(name, update) for name, update in adapter.layers.items()})
    config = json.dumps(_config(adapter, layers), indent=2, sort_keys=True) + "\n"
    tensors = {}
    for name, update in layers.items():
        key_A, key_B = _EMBEDDING if isinstance(update, EmbeddingUpdate) else _LINEAR
        tensors[f"{_PREFIX}{name}.{key_A}"], tensors[f"{_PREFIX}{name}.{key_B}"] = update.A, update.B
        if update.magnitude is not None:
            ones = [1] * (update.B.dim() - 2)
            tensors[f"{_PREFIX}{name}.{_MAGNITUDE}"] = update.magnitude.reshape(1, -1, *ones) if ones else update.magnitude
    for name, rows in adapter.rows.items():
        tensors[f"{_PREFIX}{name.removesuffix('.weight')}.{_ROWS}"] = rows.values
    inner = {plain(name): name for name in layers}
    for name, tensor in adapter.tensors.items():
        layer, _, leaf = name.rpartition(".")
        parts = [inner[layer], "base_layer", leaf] if leaf == "bias" and layer in inner else [layer, leaf]
        tensors[_PREFIX + ".".join(part for part in parts if part)] = tensor
    path.mkdir(parents=True, exist_ok=True)
    write_together({path / TENSORS: tensor_bytes(tensors, {"format": "pt"}), path / CONFIG: config.encode()})


def _representable(name: str, update: LoRAUpdate) -> LoRAUpdate:
    """`update` in a form that PEFT computes with; `FormatError` when it has none."""
    return update if isinstance(update, ProjectionUpdate) else common_form(name, update, "PEFT")


def _config(adapter: Adapter, updates: Mapping[str, LoRAUpdate]) -> dict[str, Any]:
    """PEFT's configuration for `adapter`: its patterns give every layer the rank and alpha that its tensors have."""
    if foreign := adapter.metadata.keys() - set(_METADATA):
        raise FormatError(f"PEFT's configuration has no place for the metadata {sorted(foreign)}. Nothing was written.")
    if len({update.use_rslora for update in updates.values()}) > 1:
        raise FormatError(
            "Some layers scale by lora_alpha / √r and some by lora_alpha / r, which PEFT cannot hold. Nothing was written."
        )
    if len({update.magnitude is None for update in updates.values()}) > 1:
        raise FormatError("Some layers are DoRA and some are not, which PEFT cannot hold. Nothing was written.")
    for name in adapter.rows:
        if not name.endswith(".weight") or name.removesuffix(".weight") in updates:
            raise FormatError(
                f"PEFT cannot hold rows of {name!r}: of an embedding's weight it can, if that has no factors as well."
            )
    named = {name: update for name, update in updates.items() if configured(name) == name}
    config = {key: value for key, value in described(adapter.config, named).to_dict().items() if key in _OURS}
    rest = {
        "exclude_modules": None,
        "use_dora": next(iter(updates.values())).magnitude is not None,
        "trainable_token_indices": {n.removesuffix(".weight"): list(rows.indices) for n, rows in adapter.rows.items()} or None,
        "peft_type": "LORA",
        "inference_mode": True,
        "init_lora_weights": True,
    }
    return config | rest | {key: adapter.metadata.get(key) for key in _METADATA}


def _read_stored(path: Path) -> dict[str, Tensor]:
    """The tensors of the folder; before version 0.7 PEFT pickled them."""
    if (path / TENSORS).is_file():
        return read_tensors(path / TENSORS)[0]
    if (path / PICKLED).is_file():
        return read_state_dict(path / PICKLED)
    raise FormatError(f"{path} has {CONFIG} but no {TENSORS}; fetch or save the adapter again.")


def refuse_unknown(path: Path, values: dict[str, Any]) -> None:
    """`FormatError` for a field of PEFT's configuration that asks for something that is not represented here."""
    if values.get("peft_type") != "LORA":
        raise FormatError(f"{path}: peft_type={values.get('peft_type')!r}; only LORA adapters can be read.")
    start = values.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise FormatError(
            f"{path}: init_lora_weights={start!r} changes the base weights; convert the adapter to plain LoRA with PEFT first."
        )
    for key, value in values.items():
        if key in (*_OURS, *_METADATA, *_HOW_CHOSEN, *_ELSEWHERE, *_FREE) or not value or value == _NEUTRAL.get(key):
            continue
        raise FormatError(f"{path}: {key}={value!r} asks for something that this library does not compute.")


def _sort(path: Path, stored: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """The factors by layer, the other tensors by the names they have in the model, and rows of tokens by layer."""
    factors: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        if not key.startswith(_PREFIX):
            raise FormatError(f"{path}: tensor {key!r} has no PEFT name (those start with {_PREFIX!r}).")
        parts = key.removeprefix(_PREFIX).split(".")
        name, _, factor = key.removeprefix(_PREFIX).rpartition(".lora_")
        factor = f"lora_{factor}".removesuffix(".weight") if factor.startswith("magnitude") else f"lora_{factor}"
        if name and factor in (*_LINEAR, *_EMBEDDING, _MAGNITUDE):
            factors.setdefault(name, {})[factor] = tensor
        elif any(part.startswith("lora_") for part in parts):
            raise FormatError(f"{path}: tensor {key!r} belongs to a kind of layer that cannot be represented.")
        elif key.endswith("." + _ROWS):
            rows[key.removeprefix(_PREFIX).removesuffix("." + _ROWS)] = tensor
        elif "token_adapter" in parts:
            raise FormatError(f"{path}: tensor {key!r} belongs to trained tokens, and is not their rows.")
        elif "original_module" not in parts:
            tensors[_plain_name(parts)] = tensor
    return factors, tensors, rows


def _plain_name(parts: list[str]) -> str:
    """The model's own name of a tensor that PEFT's wrappers hold."""
    plain = [part for part in parts if part not in ("base_layer", "modules_to_save")]
    if "modules_to_save" in parts and "default" in plain:
        plain.remove("default")
    return ".".join(plain)


def _update(path: Path, name: str, parts: dict[str, Tensor], config: LoRAConfig) -> LoRAUpdate:
    where = f"{path / TENSORS}: layer {name!r}"
    keys = _EMBEDDING if parts.keys() & set(_EMBEDDING) else _LINEAR
    A, B = pair(where, parts, *keys)
    name = configured(name)
    r = patterns.lookup(config.rank_pattern, name, config.r)
    lora_alpha = patterns.lookup(config.alpha_pattern, name, config.lora_alpha)
    mask = patterns.lookup(config.masks, name, None)
    magnitude = parts.get(_MAGNITUDE)
    if mask and keys is _LINEAR and B.dim() in (2, 3) and len(B) % sum(mask) == 0:
        widths = (len(B) // sum(mask),) * len(mask)
        B = B.flatten(1) if B.shape[2:].numel() == 1 else B
        update = made(where, MergedUpdate, A, B, lora_alpha, config.use_rslora, enable_lora=tuple(mask), widths=widths)
    else:
        kind = EmbeddingUpdate if keys is _EMBEDDING else ConvolutionUpdate if B.dim() > 2 else LoRAUpdate
        magnitude = magnitude if magnitude is None or magnitude.dim() == 1 else magnitude.flatten()
        update = made(where, kind, A, B, lora_alpha, config.use_rslora, magnitude)
    if update.r != r:
        raise FormatError(f"{where} has factors of rank {update.r}, but {CONFIG} says r={r}.")
    return update
