"""What `inject` and `attach` are given: a configuration in one of the forms that people have, or an adapter or its path."""

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..adapters.adapter import Adapter, check_adapter
from ..arguments import UNCHANGED, wrong
from ..config import LoRAConfig
from ..errors import ConfigError, FormatError
from ..formats import load
from ..formats.peft_config import configuration, refuse_unknown
from ..patterns import nearest_of

Given = LoRAConfig | Mapping[str, Any]

_EXPECTED = "a LoRAConfig (or a dictionary of its fields, or PEFT's LoraConfig)"
_INSTEAD = {
    str: "name the layers in a configuration: lora.inject(model, lora.LoRAConfig(r=8, target_modules=[…]))",
    Adapter: "lora.attach(model, adapter) puts an adapter on a model",
    nn.Module: "lora.inject(model, lora.LoRAConfig(r=8)) takes one model and a configuration",
    list: "name the layers in a configuration: lora.inject(model, lora.LoRAConfig(r=8, target_modules=[…]))",
}
_ELSEWHERE = ("layers_to_transform", "layers_pattern", "use_dora", "trainable_token_indices")
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def as_config(value: object, model: nn.Module) -> LoRAConfig:
    """The configuration that `value` is; `ArgumentError` or `ConfigError` where it is none, or asks for what `inject` does not
    do."""
    if isinstance(value, LoRAConfig):
        return value
    if not isinstance(value, type) and any(cls.__module__.partition(".")[0] == "peft" for cls in type(value).__mro__):
        made: Any = value
        return _of_peft(made.to_dict() if callable(getattr(made, "to_dict", None)) else {}, model)
    if isinstance(value, Mapping) and not any(isinstance(held, Tensor) for held in value.values()):
        return _of_peft(dict(value), model) if "peft_type" in value else _of_fields(value)
    remedy = next((call for kind, call in _INSTEAD.items() if isinstance(value, kind)), "")
    raise wrong("config", _EXPECTED, value, remedy)


def _of_fields(values: Mapping[str, Any]) -> LoRAConfig:
    known = [field.name for field in fields(LoRAConfig)]
    for name in values:
        if name not in known:
            near = nearest_of(str(name), known)
            raise ConfigError(f"config: LoRAConfig has no field {name!r}. Nearest: {near}. {UNCHANGED}")
    return LoRAConfig(**values)


def _of_peft(values: Mapping[str, Any], model: nn.Module) -> LoRAConfig:
    """PEFT's configuration, where it asks for what `inject` does; a task's head is trained, as PEFT does it."""
    if (start := values.get("init_lora_weights", True)) not in (True, None):
        raise _unknown(f"init_lora_weights={start!r}", "leave it at its default, which inject starts from as well")
    for name in _ELSEWHERE:
        if values.get(name) not in (None, False):
            raise _unknown(f"{name}={values[name]!r}", "name the layers in target_modules, without it")
    if not values.get("target_modules") and (values.get("target_modules") is None or not values.get("target_parameters")):
        raise _unknown("target_modules=None", "name the layers, which PEFT chooses by the kind of model")
    try:
        refuse_unknown(Path("config"), values)
    except FormatError as error:
        raise ConfigError(f"{error} {UNCHANGED}") from None
    found = configuration({name: sorted(held) if isinstance(held, set) else held for name, held in values.items()})
    heads = _HEADS.get(str(getattr(values.get("task_type"), "value", values.get("task_type"))), ())
    present = [name for name, _ in model.named_children() if name in heads and name not in found.modules_to_save]
    return replace(found, modules_to_save=[*found.modules_to_save, *present])


def _unknown(what: str, remedy: str) -> ConfigError:
    return ConfigError(f"config: PEFT's {what} is not what inject does", remedy, outcome=UNCHANGED)


def as_adapter(value: object) -> Adapter:
    """The adapter that `value` is, or that is in the files at the path `value`."""
    if isinstance(value, str | os.PathLike):
        return load(value)
    check_adapter(value)
    assert isinstance(value, Adapter)
    return value
