"""The configuration of an adapter: computed from its layers, and from the few settings that layers do not say."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

from ..arguments import wrong
from ..config import LoRAConfig
from ..patterns import Patterns
from .experts_update import ExpertsUpdate
from .fused_update import FusedUpdate
from .updates import LoRAUpdate

SETTINGS = ("lora_dropout", "modules_to_save", "bias", "fan_in_fan_out")
_BIASES = ("none", "lora_only", "all")


def settings_of(config: LoRAConfig) -> LoRAConfig:
    """`config` with nothing but the fields that no layer says.

    >>> settings_of(LoRAConfig(r=2, lora_dropout=0.1)) == LoRAConfig(lora_dropout=0.1)
    True
    """
    return LoRAConfig(**{field: getattr(config, field) for field in SETTINGS})


def described(settings: LoRAConfig, layers: Mapping[str, LoRAUpdate]) -> LoRAConfig:
    """`settings` with ranks, scalings, slices and targets as `layers` have them, by their full names. (A model that is itself
    a layer has no name to target.)

    >>> import torch
    >>> layers = {name: LoRAUpdate(torch.ones(r, 3), torch.ones(5, r), 4) for name, r in (("a", 2), ("b", 2), ("c", 1))}
    >>> dict(described(LoRAConfig(), layers).rank_pattern)
    {'^c': 1}
    """
    fused = {name: update for name, update in layers.items() if isinstance(update, FusedUpdate)}
    experts = {name: update for name, update in layers.items() if isinstance(update, ExpertsUpdate)}
    shared = {update.shared for update in experts.values()}
    ranks = {name: update.r for name, update in layers.items()}
    alphas = {name: update.lora_alpha for name, update in layers.items()}
    r, lora_alpha = _most_frequent(ranks.values(), 8), _most_frequent(alphas.values(), 8)
    return replace(
        settings,
        r=int(r),
        lora_alpha=lora_alpha,
        target_modules=tuple(sorted(name for name in layers if name and name not in experts)),
        target_parameters=tuple(sorted(experts)),
        share_expert_factor=shared.pop() if len(shared) == 1 else None,
        rank_pattern=Patterns.exact({name: own for name, own in ranks.items() if own != r}),
        alpha_pattern=Patterns.exact({name: own for name, own in alphas.items() if own != lora_alpha}),
        use_rslora=any(update.use_rslora for update in layers.values()),
        enable_lora=Patterns.exact({name: update.enable_lora for name, update in fused.items()}),
        slice_widths=Patterns.exact({name: update.widths for name, update in fused.items() if len(set(update.widths)) > 1}),
    )


def _most_frequent(values: Iterable[float], default: float) -> float:
    """The value that comes most often, the smallest of several; `default` where there is none."""
    return max(Counter(sorted(values)).items(), key=itemgetter(1), default=(default, 0))[0]


def united_settings(all_settings: list[LoRAConfig], *, full: bool) -> LoRAConfig:
    """The first settings with what all of them train in full, or with nothing of that where not `full`."""
    first = all_settings[0]
    if not full:
        return replace(first, modules_to_save=(), bias="none")
    modules = dict.fromkeys(name for settings in all_settings for name in settings.modules_to_save)
    return replace(first, modules_to_save=tuple(modules), bias=max((s.bias for s in all_settings), key=_BIASES.index))


class ConfigField:
    """The field `config` of an adapter: keeps the settings of what it is set to, and gives the configuration that describes the
    layers."""

    def __get__(self, adapter: Any, owner: type) -> LoRAConfig:
        if adapter is None:
            raise AttributeError("config")  # of the class: the field has no default
        found: LoRAConfig = adapter._described
        return found

    def __set__(self, adapter: object, config: LoRAConfig) -> None:
        if not isinstance(config, LoRAConfig):
            raise wrong("config", "a LoRAConfig", config)
        object.__setattr__(adapter, "settings", settings_of(config))
