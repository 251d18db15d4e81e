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

_NOT_OF_PEFT = ("enable_lora", "slice_widths", "share_expert_factor", "divide_expert_rank")
_OURS = tuple(f.name for f in dataclasses.fields(LoRAConfig) if f.name not in _NOT_OF_PEFT)
_ELSEWHERE = (
    "use_dora",
    "trainable_token_indices",
    "enable_lora",
    "merge_weights",
    "lora_B_layout",
)  # read where the tensors are
_HOW_CHOSEN = ("layers_to_transform", "layers_pattern", "ensure_weight_tying", "auto_mapping")
_NEUTRAL = {"peft_type": "LORA", "megatron_core": "megatron.core", "qalora_group_size": 16}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # those that leave the base weights as they were
_TRAINING = ("lora_dtype", "lorap_lr_ratio", "lorap_emb_lr")  # fields of ms-swift
_FREE = (*_TRAINING, "peft_version", "inference_mode", "runtime_config", "eva_config", "loftq_config", "init_lora_weights")

# fmt: off
_COMPUTES = {  # fields that change what a layer computes
    "alora_invocation_tokens": "an update that acts behind certain tokens only (aLoRA)",
    "arrow_config": "several adapters with a router (Arrow)",
    "corda_config": "a start from the base weights (CorDA)",
    "kasa_config": "another update than B·A (KaSA)",
    "layer_replication": "layers that come several times (layer replication)",
    "lora_bias": "a bias of the second factor",
    "lora_ga_config": "a start from the base weights (LoRA-GA)",
    "megatron_config": "layers of Megatron",
    "monteclora_config": "factors that are drawn at random (MonteCLoRA)",
    "use_bdlora": "block-diagonal factors (BD-LoRA)",
    "use_qalora": "pooled inputs (QA-LoRA)",
    "velora_config": "compressed activations (VeLoRA)",
}
# fmt: on


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
            f"{path}: init_lora_weights={start!r} changes the base weights; convert the adapter to plain LoRA with PEFT "
            "first (save_pretrained with path_initial_model_for_weight_conversion)."
        )
    for key, value in values.items():
        if key in (*_OURS, *METADATA, *_HOW_CHOSEN, *_ELSEWHERE, *_FREE) or _is_nothing(value) or value == _NEUTRAL.get(key):
            continue
        if key in _COMPUTES:
            raise FormatError(f"{path}: {key}={value!r:.80} asks for {_COMPUTES[key]}, which this library does not compute.")
        raise FormatError(
            f"{path}: {key}={value!r:.80} is not known here, and may change what is computed; if that is the field's default "
            f"in the version of PEFT that wrote it ({values.get('peft_version', 'not noted')}), take it out of the file."
        )


def _is_nothing(value: Any) -> bool:
    """Whether a field is off whatever it means: null, false, 0, empty, or an object of nothing but such."""
    return all(map(_is_nothing, value.values())) if isinstance(value, dict) else not value


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
