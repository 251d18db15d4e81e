"""LoRA's own options of a run: a `LoRAConfig` with the defaults of the command line, from plain values and back."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..config import ALL_LINEAR, LoRAConfig
from ..errors import ConfigError

USUAL = LoRAConfig(r=8, lora_alpha=16.0, target_modules=())
NAMES = tuple(option.name for option in fields(LoRAConfig))
HELP: Mapping[str, tuple[str, str]] = {  # what a value is called, and the help text
    "r": ("N", "LoRA rank; 16 for chat"),
    "lora_alpha": ("X", "LoRA scaling: updates are multiplied by lora_alpha / r; 32 for chat"),
    "lora_dropout": ("P", "dropout on the input of the LoRA update"),
    "target_modules": (
        "NAMES",
        "layers to adapt: names, a regular expression, or all-linear (default: as --layers; chat: all-linear)",
    ),
    "exclude_modules": ("NAMES", "layers to skip; same syntax as --target-modules"),
    "modules_to_save": ("NAMES", "modules to train in full with LoRA, besides the head"),
    "bias": ("", "biases to train: none, those of adapted layers, or all"),
    "rank_pattern": ("MAP", "r of single layers: {name or regular expression: r}"),
    "alpha_pattern": ("MAP", "lora_alpha of single layers: {name or regular expression: lora_alpha}"),
    "use_rslora": ("", "scale the update by lora_alpha / sqrt(r)"),
    "fan_in_fan_out": ("", "layers store their weight as (in, out); inferred, so never needed"),
    "enable_lora": ("LIST", "slices of fused projections to adapt: [true, false, true]; needs --target-modules"),
    "target_parameters": ("NAMES", "3-D Parameters of experts to adapt; all-linear finds those of transformers' mixtures"),
    "share_expert_factor": ("A|B", "let all experts share this factor"),
    "divide_expert_rank": ("", "give experts the rank r / (experts a token is sent to)"),
    "slice_widths": ("MAP", "widths of those slices, if unequal: {name or regular expression: [width, ...]}"),
}
_JOINED = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")


def words(joined: str) -> list[str]:
    """The words of a list that is joined by commas."""
    return [word.strip() for word in joined.split(",") if word.strip()]


def _names(value: Any) -> Any:
    """Names that are joined by commas as a list; anything else as it is."""
    joined = isinstance(value, str) and value != ALL_LINEAR and re.fullmatch(r"[\w.-]+(\s*,\s*[\w.-]+)*,?\s*", value)
    return words(value) if joined else value


def read(values: Mapping[str, Any]) -> LoRAConfig:
    """LoRA's options; `target_modules` of None means the layers that the run's own option `layers` names."""
    given = USUAL.to_dict() | {name: _names(value) if name in _JOINED else value for name, value in values.items()}
    if "target_modules" in values and given["target_modules"] in ("", [], ()):
        raise ConfigError(f"target_modules={values['target_modules']!r}: must name layers.")
    return LoRAConfig(**given | {"target_modules": given["target_modules"] or ()})


def plain(config: LoRAConfig) -> dict[str, Any]:
    """The options by name, as `read` takes them and YAML can hold them."""
    return config.to_dict() | {"target_modules": config.to_dict()["target_modules"] or None}
