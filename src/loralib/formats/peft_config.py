"""PEFT's configuration, `adapter_config.json`: read into a `LoRAConfig`, and written for an adapter.

Fields that say how layers were *chosen* are not needed on reading (the tensors' names say it); fields that change what a layer
*computes* and are not known here are refused by name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapters.adapter import Adapter
from ..adapters.config_of import described
from ..adapters.updates import LoRAUpdate
from ..config import LoRAConfig
from ..errors import ConfigError, FormatError
from .peft_attention import configured

METADATA = ("base_model_name_or_path", "task_type", "revision")

_OURS = tuple(f.name for f in dataclasses.fields(LoRAConfig) if f.name not in ("enable_lora", "slice_widths"))
_ELSEWHERE = ("use_dora", "trainable_token_indices", "enable_lora", "merge_weights")  # read where the tensors are
_HOW_CHOSEN = ("layers_to_transform", "layers_pattern", "ensure_weight_tying", "auto_mapping")
_NEUTRAL = {"peft_type": "LORA", "megatron_core": "megatron.core", "qalora_group_size": 16}
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")  # those that leave the base weights as they were
_FREE = ("peft_version", "inference_mode", "runtime_config", "eva_config", "loftq_config", "init_lora_weights")


def configuration(values: Mapping[str, Any]) -> LoRAConfig:
    """What the fields of PEFT's configuration say, those of its first versions included; `ConfigError` where they cannot be."""
    found = LoRAConfig(**{key: values[key] for key in _OURS if values.get(key) is not None})
    return dataclasses.replace(found, enable_lora=values["enable_lora"]) if values.get("enable_lora") else found


def refuse_costly(where: Path | str, config: LoRAConfig, names: Sequence[str]) -> None:
    """`FormatError` for an expression of a file that could take too long to match with the `names` of its layers."""
    for field in ("rank_pattern", "alpha_pattern", "enable_lora"):
        entries: Any = getattr(config, field)
        try:
            entries.check_cost(names, field)
        except ConfigError as error:
            raise FormatError(f"{where}: {error}") from None


def refuse_unknown(path: Path, values: Mapping[str, Any]) -> None:
    """`FormatError` for a field of PEFT's configuration that asks for something that is not represented here."""
    if values.get("peft_type") != "LORA":
        raise FormatError(f"{path}: peft_type={values.get('peft_type')!r}; only LORA adapters can be read.")
    start = values.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise FormatError(
            f"{path}: init_lora_weights={start!r} changes the base weights; convert the adapter to plain LoRA with PEFT first."
        )
    for key, value in values.items():
        if key in (*_OURS, *METADATA, *_HOW_CHOSEN, *_ELSEWHERE, *_FREE) or not value or value == _NEUTRAL.get(key):
            continue
        raise FormatError(f"{path}: {key}={value!r} asks for something that this library does not compute.")


def configuration_of(adapter: Adapter, updates: Mapping[str, LoRAUpdate]) -> dict[str, Any]:
    """PEFT's configuration for `adapter`: its patterns give every layer the rank and alpha that its tensors have. updates: in
    PEFT's form, by its names. `FormatError` for what no configuration can say."""
    if foreign := adapter.metadata.keys() - set(METADATA):
        raise FormatError(f"PEFT's configuration has no place for the metadata {sorted(foreign)}. Nothing was written.")
    if len({update.use_rslora for update in updates.values()}) > 1:
        raise FormatError(
            "Some layers scale by lora_alpha / √r and some by lora_alpha / r, which PEFT cannot hold. Nothing was written."
        )
    if len({update.is_dora for update in updates.values()}) > 1:
        raise FormatError("Some layers are DoRA and some are not, which PEFT cannot hold. Nothing was written.")
    for name in adapter.rows:
        if not name.endswith(".weight") or name.removesuffix(".weight") in updates:
            raise FormatError(
                f"PEFT cannot hold rows of {name!r}: of an embedding's weight it can, if that has no factors as well. "
                "Nothing was written."
            )
    named = {name: update for name, update in updates.items() if configured(name) == name}
    config = {key: value for key, value in described(adapter.settings, named).to_dict().items() if key in _OURS}
    rest = {
        "exclude_modules": None,
        "use_dora": next(iter(updates.values())).is_dora,
        "trainable_token_indices": {n.removesuffix(".weight"): list(rows.indices) for n, rows in adapter.rows.items()} or None,
        "peft_type": "LORA",
        "inference_mode": True,
        "init_lora_weights": True,
    }
    return config | rest | {key: adapter.metadata.get(key) for key in METADATA}
