"""`inject`: put LoRA on the targeted layers of a model, in place."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import layers, patterns, tensors
from ..adapters.fused_update import FusedUpdate
from ..adapters.updates import LoRAUpdate
from ..architectures import ACTIVE_EXPERTS
from ..arguments import check_dtype
from ..config import LoRAConfig, check_usable_alpha
from ..errors import ConfigError, TargetError
from ..layers import AdaptedLayer
from ..patterns import within
from ..tensors import factor_dtype
from . import shared
from .bound import Bound
from .eject import eject_layers
from .given import Given, as_config
from .module_tree import Slot
from .resized import check_sizes, remember_sizes
from .saved_modules import forget, record, record_biases, record_of, replace_with_copies
from .statistics import note_statistics
from .survey import Survey
from .targets import find_targets, saved_names, slices_of
from .trainable import bias_names


def inject(model: nn.Module, config: Given, dtype: torch.dtype | None = None) -> Bound:
    """Add LoRA to the targeted layers of `model`, in place. Returns the names of the adapted layers.

    B starts at zero (paper, section 4.1), so the model computes what it did: bit for bit in float32, and in lower precision
    where a layer has no bias. (There a bias is added after the update, so that small updates are not lost when W·x is rounded;
    the products of an `nn.MultiheadAttention` are computed one by one, up to rounding.)

    Nothing is frozen: `mark_only_lora_as_trainable` does that. Modules in `modules_to_save` get copies of their tensors to
    train; `eject` puts the originals back.

    Args:
        model: The model.
        config: A `LoRAConfig`, a dictionary of its fields, or a `LoraConfig` of PEFT that asks for nothing else.
        dtype: Of the factors. Default: float32 where the weight has a lower precision, its own dtype elsewhere.

    Returns:
        A list of names, which also holds the number of parameters of the factors, and what "all-linear" left out and
            why.

    Raises:
        TargetError: When a pattern matches nothing, or a matched layer cannot be adapted.
        ConfigError: When a hyper-parameter does not fit a layer.
        LayerError: When the model is wrapped in DDP or FSDP already, which would not keep the factors in step.
        ArgumentError: When `model`, `config` or `dtype` is something else. The model is unchanged after every error.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"], modules_to_save=["2"]))
        ['0']
        >>> lora.mark_only_lora_as_trainable(model)
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['0.lora_A', '0.lora_B', '2.weight', '2.bias']
    """
    read = Survey(model)
    read.check_enabled("injected")
    shared.check_not_flattened(read, "adapted")
    check_sizes(read, "injected")
    config = as_config(config, read.model)
    check_dtype(dtype)
    plan = _plan(read, config)
    names = [*(target.name for target in plan.targets), *plan.extra]
    shared.check_not_sharded(read, names, "adapted")
    shared.check_synchronized(read, names, "adapted")
    _warn_of_ranks(plan.targets)
    for target in plan.targets:
        check_usable_alpha(target.lora_alpha)
    updates = [target.new_update(config, dtype) for target in plan.targets]
    with all_or_nothing(read):
        for target, update in zip(plan.targets, updates, strict=True):
            adopt_in(read, target.layer, update, config.lora_dropout)
        kept = record(read.model)
        note_statistics(read, kept)
        replace_with_copies(kept, plan.extra, read.replaced)
    record_biases(kept, config.bias, plan.biases)
    kept.modules = tuple(dict.fromkeys([*kept.modules, *plan.saved]))
    remember_sizes(read.model, kept, {target.name: target.layer for target in plan.targets})
    parameters = sum(update.A.numel() + update.B.numel() for update in updates)
    experts = sum(isinstance(target.layer, layers.ExpertWeight) for target in plan.targets)
    return Bound([target.name for target in plan.targets], parameters, plan.left_out, experts)


@contextmanager
def all_or_nothing(read: Survey) -> Iterator[None]:
    """Context manager: when the block raises, the layers that it adapted are plain again, and the record of the model is the
    one that it had."""
    before, record_before = set(read.carriers), record_of(read.model)
    try:
        yield
    except BaseException:
        eject_layers(Survey(read.model), but=before)
        if record_before is None:
            forget([read.model])
        raise


class _Target(NamedTuple):
    """A layer that is to be adapted, and how: by a class, with factors of these shapes. structure: what shapes do not say."""

    name: str
    layer: nn.Module
    handler: type[AdaptedLayer]
    r: int
    lora_alpha: float
    structure: dict[str, Any]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    def new_update(self, config: LoRAConfig, dtype: torch.dtype | None) -> LoRAUpdate:
        """Freshly drawn factors; `TargetError` when the class makes none that go together."""
        W = self.layer.weight
        assert isinstance(W, Tensor)
        dtype = dtype or factor_dtype(W)
        try:
            return self.handler.new_update(self.layer, self.r, self.lora_alpha, config.use_rslora, dtype, **self.structure)
        except ConfigError as error:
            raise _unfit(self.name, self.r, error) from None


@dataclass(frozen=True)
class _Plan:
    """What an injection does. left_out: what is not adapted, and why. saved: the modules that are trained in full. biases:
    those that are trained. extra: the places of all tensors that are trained in full."""

    targets: list[_Target]
    left_out: dict[str, str]
    saved: list[str]
    biases: set[str]
    extra: dict[str, Slot]


def _plan(read: Survey, config: LoRAConfig) -> _Plan:
    """What `config` asks for; `TargetError` when it cannot be done."""
    (names, left_out), saved = find_targets(read, config), saved_names(read, config)
    if both := [name for name in names if within(name, saved)]:
        raise TargetError(f"{both[0]!r} is both a target and in modules_to_save; choose one. Nothing was changed.")
    for field in ("rank_pattern", "alpha_pattern", "enable_lora", "slice_widths"):
        patterns.check_lookup(getattr(config, field), names, field)
    extra = [name for name in read.slots if within(name, saved)] if saved else []
    biases = bias_names(read, config.bias, [read.sites[name] for name in names])
    extra += sorted(biases - set(extra))
    absent = [name for name in extra if not read.tensors[name].numel() and tensors.kind(read.tensors[name]) == "partitioned"]
    if absent:
        raise TargetError(
            f"{absent[0]!r} is to be trained in full, and DeepSpeed has partitioned it (ZeRO-3), so that it cannot be copied; "
            "inject inside `with deepspeed.zero.GatheredParameters(list(model.parameters()))`. Nothing was changed."
        )
    if problem := read.tie_problem(extra):
        fields = f"modules_to_save={list(config.modules_to_save)!r}, bias={config.bias!r}"
        raise TargetError(f"{fields}: {problem}. Nothing was changed.")
    targets = [_target(read, name, config) for name in names]
    return _Plan(targets, left_out, saved, biases, {name: read.slots[name] for name in extra})


def _target(read: Survey, name: str, config: LoRAConfig) -> _Target:
    layer = read.sites[name]
    experts = isinstance(layer, layers.ExpertWeight)
    structure = {"shared": config.share_expert_factor} if experts else slices_of(name, config)
    handler = layers.handler_of(type(layer), FusedUpdate if structure and not experts else None)
    assert handler is not None
    if config.fan_in_fan_out and not getattr(handler, "fan_in_fan_out", False):
        raise TargetError(
            f"fan_in_fan_out=True, but {name!r}, a {type(layer).__name__}, stores its weight as (out, in). Remove "
            "fan_in_fan_out; it is inferred from the layer type. Nothing was changed."
        )
    r = patterns.lookup(config.rank_pattern, name, _usual_rank(read, name, config))
    lora_alpha = patterns.lookup(config.alpha_pattern, name, config.lora_alpha)
    try:
        shapes = handler.factor_shapes(layer, r, **structure)
    except ConfigError as error:
        raise _unfit(name, r, error) from None
    return _Target(name, layer, handler, r, lora_alpha, structure, shapes)


def _usual_rank(read: Survey, name: str, config: LoRAConfig) -> int:
    """The rank of a layer that no pattern names."""
    layer = read.sites[name]
    if not isinstance(layer, layers.ExpertWeight) or not config.divide_expert_rank:
        return config.r
    settings = [vars(module).get("config") for module in (layer.owner, read.model)]
    settings += [getattr(of_model, "text_config", None) for of_model in settings]
    values = [getattr(of_model, field, None) for of_model in settings for field in ACTIVE_EXPERTS]
    found = [value for value in values if isinstance(value, int) and value > 0]
    if not found:
        raise TargetError(
            f"divide_expert_rank: the {type(layer.owner).__name__} of {name!r} does not say how many experts a token is sent "
            "to; give its rank in rank_pattern. Nothing was changed."
        )
    return max(1, config.r // found[0])


def _unfit(name: str, r: int, error: ConfigError) -> TargetError:
    return TargetError(f"{name!r} of rank {r} cannot be adapted: {error} Nothing was changed.")


def _warn_of_ranks(targets: Iterable[_Target]) -> None:
    large = [target.name for target in targets if layers.rank_is_excessive(target.r, *target.shapes)]
    if large:
        warnings.warn(
            f"The rank is larger than both sides of the weight in {len(large)} layers, {large[0]!r} first: a full update of "
            "those weights would be smaller than its factors.",
            stacklevel=3,
        )


def adopt_in(read: Survey, layer: nn.Module, update: LoRAUpdate, lora_dropout: float) -> None:
    """Give `layer`, one of the survey's sites, an update that fits it, and see to it that the layer is called."""
    adapted = layers.adopt_fitting(layer, update, lora_dropout)
    owner = read.owners.get(id(layer))
    if isinstance(layer, layers.ExpertWeight):
        layers.enter_experts(layer.owner, adapted)
    elif isinstance(layer, layers.Projection):
        layers.enter(layer.owner)
        layer.owner.add_module(layer.name, layer)
    elif isinstance(owner, nn.MultiheadAttention):
        layers.enter(owner)
    elif isinstance(owner, nn.TransformerEncoderLayer):
        adapted.stay_called()
        if layers.attention_problem(owner.self_attn) is None:  # which may be given a nested tensor that needs a gradient
            layers.enter(owner.self_attn)
    elif owner is not None and layers.is_fusable(owner):
        layers.guard_fusion(owner)
