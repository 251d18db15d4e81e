"""From a `LoRAConfig` to the names of the layers that it targets in a model."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .. import layers, patterns
from ..adapters.fused_update import FusedUpdate
from ..config import ALL_LINEAR, LoRAConfig
from ..errors import TargetError
from ..patterns import within
from .module_tree import join
from .resized import output_embedding
from .survey import Survey


def saved_names(read: Survey, config: LoRAConfig) -> list[str]:
    """The modules that `config.modules_to_save` names; `TargetError` for an entry that matches none."""
    if not config.modules_to_save:
        return []
    names = list(filter(None, read.modules))
    return patterns.match(names, config.modules_to_save, "modules_to_save", type(read.model).__name__)


def _match(modules: dict[str, nn.Module], pattern: str | Sequence[str], field: str, model: str) -> list[str]:
    """The names that `pattern` matches; an `nn.MultiheadAttention` stands for its four projections."""
    names = patterns.match(list(filter(None, modules)), pattern, field, model)
    whole = {name for name in names if isinstance(modules[name], nn.MultiheadAttention)}
    if not whole:
        return names
    parts = {join(name, part) for name in whole for part in (*layers.PROJECTIONS, "out_proj")}
    chosen = (set(names) - whole) | parts
    return [name for name in modules if name in chosen]


def find_targets(read: Survey, config: LoRAConfig) -> list[str]:
    """The names of the layers that `config` targets, in the model's order.

    Raises `TargetError` when a pattern matches nothing or matches a layer that cannot be adapted.
    """
    where = type(read.model).__name__
    if layers.handler_of(type(read.model)):
        raise TargetError(f"{where} is itself a layer, and layers are known by name; put it in an nn.Sequential first.")
    names = _all_linear(read, config) if config.target_modules == ALL_LINEAR else _named(read, config.target_modules)
    if config.exclude_modules:
        excluded = set(_match(read.sites, config.exclude_modules, "exclude_modules", where))
        names = [name for name in names if name not in excluded]
        if not names:
            raise TargetError(f"exclude_modules leaves no layer of {where} to adapt. Nothing was changed.")
    for name in names:
        update_class = FusedUpdate if slices_of(name, config) else None
        if problem := read.layer_problem(read.sites[name], config.lora_dropout, update_class):
            raise TargetError(f"{name!r} of {where} cannot be adapted: {problem}. Nothing was changed.")
    return names


def _all_linear(read: Survey, config: LoRAConfig) -> list[str]:
    saved, output = saved_names(read, config), output_embedding(read.model)
    names = [n for n, m in read.sites.items() if layers.is_linear(m) and m is not output and not within(n, saved)]
    if not names:
        raise TargetError(
            f"target_modules={ALL_LINEAR!r}: {type(read.model).__name__} has no linear layer to adapt. Nothing was changed."
        )
    return names


def _named(read: Survey, pattern: str | Sequence[str]) -> list[str]:
    names = _match(read.sites, pattern, "target_modules", type(read.model).__name__)
    if not names:
        raise TargetError("target_modules=[] names no layer to adapt. Nothing was changed.")
    return names


def slices_of(name: str, config: LoRAConfig) -> dict[str, tuple[Any, ...]]:
    """Which slices of the layer `name` get updates, and how wide they are; empty for a layer that is not sliced."""
    if not config.enable_lora and not config.slice_widths:
        return {}
    mask, widths = patterns.lookup(config.masks, name, ()), patterns.lookup(config.slice_widths, name, ())
    return {"enable_lora": tuple(mask), "widths": tuple(widths)} if mask or widths else {}
