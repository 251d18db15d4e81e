"""`inject`: put LoRA on the targeted layers of a model, in place."""

import warnings

import torch
from torch import Tensor, nn

from .. import layers, patterns
from ..adapters.updates import FusedUpdate, LoRAUpdate
from ..config import LoRAConfig
from ..errors import ConfigError, TargetError
from ..patterns import within
from .module_tree import named_tensors, tie_problem, unwrap
from .saved_modules import check_enabled, record, set_aside
from .survey import owners, sites
from .targets import find_targets, saved_names
from .trainable import bias_names


def inject(model: nn.Module, config: LoRAConfig, dtype: torch.dtype | None = None) -> list[str]:
    """Give every layer of `model` that `config` targets a LoRA update, in place; the names of those layers are returned.

    B starts at zero, so the model computes bit for bit what it did (but for `nn.MultiheadAttention`, whose products are then
    done one by one: up to rounding). dtype: of the factors; None means float32 where the
    weight has a lower precision and the weight's own dtype elsewhere. Nothing is frozen: `mark_only_lora_as_trainable`
    does that. Modules in `modules_to_save` get copies of their tensors to train; `eject` puts the originals back.
    Raises `TargetError` when a pattern matches nothing or a matched layer cannot be adapted; the model is then unchanged.

    >>> import loralib as lora
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"], modules_to_save=["2"]))
    ['0']
    >>> lora.mark_only_lora_as_trainable(model)
    >>> [name for name, p in model.named_parameters() if p.requires_grad]
    ['0.lora_A', '0.lora_B', '2.weight', '2.bias']
    """
    model = unwrap(model)
    check_enabled(model, "injected")
    names, saved = find_targets(model, config), saved_names(model, config)
    for name in names:
        if within(name, saved):
            raise TargetError(f"{name!r} is both a target and in modules_to_save; choose one. Nothing was changed.")
    for field in ("rank_pattern", "alpha_pattern", "enable_lora", "slice_widths"):
        patterns.check_lookup(getattr(config, field), names, field)
    beside = [name for name in named_tensors(model) if within(name, saved)]
    beside += sorted(bias_names(model, config.bias, names) - set(beside))
    if problem := tie_problem(model, beside):
        fields = f"modules_to_save={list(config.modules_to_save)!r}, bias={config.bias!r}"
        raise TargetError(f"{fields}: {problem}. Nothing was changed.")
    modules = sites(model)
    updates = {name: _new_update(name, modules[name], config, dtype) for name in names}
    _warn_of_ranks(updates)
    owner = owners(model)
    for name, update in updates.items():
        adopt_in(owner.get(id(modules[name])), modules[name], update, config.lora_dropout)
    kept = record(model)
    kept.bias = config.bias if config.bias != "none" else kept.bias
    kept.modules = tuple(dict.fromkeys([*kept.modules, *saved]))
    set_aside(model, beside)
    return names


def _new_update(name: str, layer: nn.Module, config: LoRAConfig, dtype: torch.dtype | None) -> LoRAUpdate:
    mask, widths = patterns.lookup(config.masks, name, ()), patterns.lookup(config.slice_widths, name, ())
    structure = {"enable_lora": tuple(mask), "widths": tuple(widths)} if mask or widths else {}
    handler, W = layers.handler_of(type(layer), FusedUpdate if structure else None), layer.weight
    assert handler is not None
    assert isinstance(W, Tensor)
    if config.fan_in_fan_out and not getattr(handler, "fan_in_fan_out", False):
        raise TargetError(
            f"fan_in_fan_out=True, but {name!r}, a {type(layer).__name__}, does not store its weight as (in, out); leave the "
            "field out: which layers do is known. Nothing was changed."
        )
    r = patterns.lookup(config.rank_pattern, name, config.r)
    lora_alpha = patterns.lookup(config.alpha_pattern, name, config.lora_alpha)
    dtype = dtype or torch.promote_types(W.dtype, torch.float32)
    try:
        return handler.new_update(layer, r, lora_alpha, config.use_rslora, dtype, **structure)
    except ConfigError as error:
        raise TargetError(f"{name!r} of rank {r} cannot be adapted: {error} Nothing was changed.") from None


def _warn_of_ranks(updates: dict[str, LoRAUpdate]) -> None:
    large = [name for name, u in updates.items() if layers.rank_is_excessive(u.r, tuple(u.A.shape), tuple(u.B.shape))]
    if large:
        warnings.warn(
            f"The rank is larger than both sides of the weight in {len(large)} layers, {large[0]!r} first: a full update of "
            "those weights would be smaller than its factors.",
            stacklevel=3,
        )


def adopt_in(owner: nn.Module | None, layer: nn.Module, update: LoRAUpdate, lora_dropout: float) -> None:
    """Give `layer`, whose owner is that of `owners`, an update that fits it, seeing to it that the layer is called."""
    adapted = layers.adopt_fitting(layer, update, lora_dropout)
    if isinstance(layer, layers.Projection):
        layers.enter(layer.owner)
        layer.owner.add_module(layer.name, layer)
    elif isinstance(owner, nn.MultiheadAttention):
        layers.enter(owner)
    elif isinstance(owner, nn.TransformerEncoderLayer):
        adapted.stay_called()
        if layers.attention_problem(owner.self_attn) is None:  # which may be given a nested tensor that needs a gradient
            layers.enter(owner.self_attn)
