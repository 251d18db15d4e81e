"""LoRA on whole models: put it in and take it out, merge and unmerge it, switch it off for a while.

Every function works in place and either succeeds or changes nothing: it first plans, collecting all problems, and only
then acts. Modes (`training`) and `requires_grad` flags of what was there before are left as found.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from . import layers, patterns, trained
from .adapters.updates import LoRAUpdate, MergedUpdate
from .config import ALL_LINEAR, LoRAConfig
from .errors import ConfigError, LayerError, TargetError
from .layers import AdaptedLayer
from .patterns import within
from .trained import check_enabled, join, unwrap

# --- finding layers -------------------------------------------------------------------------------------------------


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The layers of `model` that carry an update, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLayer) and m.has_update}


def require_adapted(model: nn.Module) -> dict[str, AdaptedLayer]:
    """`adapted_layers`; `LayerError` when there are none, and nothing trained beside any either."""
    found = adapted_layers(model)
    if not found and not any(True for _ in trained.records(model)):
        raise LayerError(
            f"{type(model).__name__} has no layer with a LoRA update; inject a LoRAConfig or attach an adapter first."
        )
    return found


def sites(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of `model` by name, and with them the projections of its `nn.MultiheadAttention`s, which become modules
    when they are adapted."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        found[name] = module
        if isinstance(module, nn.MultiheadAttention) and layers.attention_problem(module) is None:
            missing = (p for p in layers.PROJECTIONS if p not in module._modules)
            found |= {join(name, projection): layers.Projection(module, projection) for projection in missing}
    return found


def _saved_modules(model: nn.Module, config: LoRAConfig) -> list[str]:
    if not config.modules_to_save:
        return []
    names = [name for name, _ in model.named_modules() if name]
    return patterns.match(names, config.modules_to_save, "modules_to_save", type(model).__name__)


def _output_embedding(model: nn.Module) -> nn.Module | None:
    """The layer that maps hidden states to the vocabulary, where the model follows Hugging Face's protocol for it."""
    protocol: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    return protocol() if protocol else None


def owners(model: nn.Module) -> dict[int, nn.Module]:
    """The modules of torch that read weights of their layers without calling them, by the ids of those layers."""
    readers = (m for m in model.modules() if isinstance(m, nn.MultiheadAttention | nn.TransformerEncoderLayer))
    return {id(child): module for module in readers for child in module.children()}


def layer_problem(
    owner: nn.Module | None, layer: nn.Module, lora_dropout: float, update_class: type[LoRAUpdate] | None = None
) -> str | None:
    """Why `layer`, whose owner is that of `owners`, cannot be given an update, or None."""
    if isinstance(owner, nn.MultiheadAttention) and (problem := layers.attention_problem(owner)):
        return problem
    return layers.adoption_problem(layer, lora_dropout, update_class)


def _match(modules: dict[str, nn.Module], pattern: str | Sequence[str], field: str, model: str) -> list[str]:
    """The names that `pattern` matches; an `nn.MultiheadAttention` stands for its four projections."""
    names = patterns.match([name for name in modules if name], pattern, field, model)
    whole = [name for name in names if isinstance(modules[name], nn.MultiheadAttention)]
    parts = {join(name, part) for name in whole for part in (*layers.PROJECTIONS, "out_proj")}
    return [name for name in modules if (name in names and name not in whole) or name in parts]


def find_targets(model: nn.Module, config: LoRAConfig) -> list[str]:
    """The names of the layers that `config` targets in `model`, in the model's order.

    Raises `TargetError` when a pattern matches nothing or matches a layer that cannot be adapted.
    """
    modules, where = sites(model), type(model).__name__
    if layers.treatment(type(model)):
        raise TargetError(f"{where} is itself a layer, and layers are known by name; put it in an nn.Sequential first.")
    if config.target_modules == ALL_LINEAR:
        saved, output = _saved_modules(model, config), _output_embedding(model)
        names = [n for n, m in modules.items() if layers.is_linear(m) and m is not output and not within(n, saved)]
        if not names:
            raise TargetError(f"target_modules={ALL_LINEAR!r}: {where} has no linear layer to adapt. Nothing was changed.")
    else:
        names = _match(modules, config.target_modules, "target_modules", where)
        if not names:
            raise TargetError("target_modules=[] names no layer to adapt. Nothing was changed.")
    if config.exclude_modules:
        excluded = set(_match(modules, config.exclude_modules, "exclude_modules", where))
        names = [name for name in names if name not in excluded]
        if not names:
            raise TargetError(f"exclude_modules leaves no layer of {where} to adapt. Nothing was changed.")
    owner = owners(model)
    for name in names:
        is_sliced = any(patterns.lookup(field, name, ()) for field in (config.masks, config.slice_widths))
        update_class = MergedUpdate if is_sliced else None
        if problem := layer_problem(owner.get(id(modules[name])), modules[name], config.lora_dropout, update_class):
            raise TargetError(f"{name!r} of {where} cannot be adapted: {problem}. Nothing was changed.")
    return names


# --- in and out -----------------------------------------------------------------------------------------------------


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
    names, saved = find_targets(model, config), _saved_modules(model, config)
    for name in names:
        if within(name, saved):
            raise TargetError(f"{name!r} is both a target and in modules_to_save; choose one. Nothing was changed.")
    for field in ("rank_pattern", "alpha_pattern", "enable_lora", "slice_widths"):
        patterns.check_lookup(getattr(config, field), names, field)
    beside = [name for name in trained.named_tensors(model) if within(name, saved)]
    beside += sorted(trained.bias_names(model, config.bias, names) - set(beside))
    if problem := trained.tie_problem(model, beside):
        fields = f"modules_to_save={list(config.modules_to_save)!r}, bias={config.bias!r}"
        raise TargetError(f"{fields}: {problem}. Nothing was changed.")
    modules = sites(model)
    updates = {name: _new_update(name, modules[name], config, dtype) for name in names}
    _warn_of_ranks(updates)
    owner = owners(model)
    for name, update in updates.items():
        adopt_in(owner.get(id(modules[name])), modules[name], update, config.lora_dropout)
    kept = trained.record(model)
    kept.bias = config.bias if config.bias != "none" else kept.bias
    kept.modules = tuple(dict.fromkeys([*kept.modules, *saved]))
    trained.set_aside(model, beside)
    return names


def _new_update(name: str, layer: nn.Module, config: LoRAConfig, dtype: torch.dtype | None) -> LoRAUpdate:
    mask, widths = patterns.lookup(config.masks, name, ()), patterns.lookup(config.slice_widths, name, ())
    structure = {"enable_lora": tuple(mask), "widths": tuple(widths)} if mask or widths else {}
    treatment, W = layers.treatment(type(layer), MergedUpdate if structure else None), layer.weight
    assert treatment is not None
    assert isinstance(W, Tensor)
    if config.fan_in_fan_out and not getattr(treatment, "fan_in_fan_out", False):
        raise TargetError(
            f"fan_in_fan_out=True, but {name!r}, a {type(layer).__name__}, does not store its weight as (in, out); leave the "
            "field out: which layers do is known. Nothing was changed."
        )
    r = patterns.lookup(config.rank_pattern, name, config.r)
    lora_alpha = patterns.lookup(config.alpha_pattern, name, config.lora_alpha)
    dtype = dtype or torch.promote_types(W.dtype, torch.float32)
    try:
        return treatment.new_update(layer, r, lora_alpha, config.use_rslora, dtype, **structure)
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


def eject(model: nn.Module) -> None:
    """Take all LoRA updates out of `model`, which is then what it was before, attribute for attribute.

    Merged layers are unmerged first; tensors trained beside the factors get their originals back.
    Raises `LayerError` when a layer cannot be given back (sharded, or hooked since), with nothing changed.

    >>> import loralib as lora
    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> before = model.state_dict()
    >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
    >>> lora.eject(model)
    >>> model, list(model.state_dict()) == list(before)
    (Sequential(
      (0): Linear(in_features=8, out_features=8, bias=True)
    ), True)
    """
    found = require_adapted(model)
    check_enabled(model, "ejected")
    _check_all(found, layers.eject_problem, "ejected")
    _eject_layers(model, found.values())
    for _, module, kept in reversed(list(trained.records(model))):
        trained.swap_originals(module, kept)
    trained.forget(model)


def _eject_layers(model: nn.Module, adapted: Iterable[AdaptedLayer]) -> None:
    for layer in adapted:
        layers.eject(layer)
        if isinstance(layer, layers.Projection):
            del layer.owner._modules[layer.name]
            layers.leave(layer.owner)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            layers.leave(module)


def _check_all(found: dict[str, AdaptedLayer], check: Callable[[AdaptedLayer], str | None], verb: str) -> None:
    for name, layer in found.items():
        if problem := check(layer):
            raise LayerError(f"{name!r} cannot be {verb}: {problem}. Nothing was changed.")


# --- merging --------------------------------------------------------------------------------------------------------


def merge(model: nn.Module, keep: bool = True) -> None:
    """Let every adapted layer compute with W + ΔW as one matrix product, as fast as the plain layer.

    keep: set the original weights aside, so that `unmerge` restores them bit for bit. With `keep=False` the merge is final:
    the model becomes a plain one with the merged weights (and the tensors trained beside them), and the originals' memory
    is free. A weight tied to another module stays untouched there; the merged layer has its own.
    Raises `LayerError` when a weight cannot be merged, with nothing changed.

    >>> import loralib as lora
    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
    >>> lora.merge(model, keep=False)
    >>> model
    Sequential(
      (0): Linear(in_features=8, out_features=8, bias=True)
    )
    """
    found = require_adapted(model)
    _check_all({n: layer for n, layer in found.items() if not layer.merged}, lambda layer: layer.merge_problem(), "merged")
    if not keep:
        _check_all(found, layers.eject_problem, "merged for good")
        _warn_of_ties(model, found)
    for layer in found.values():
        layer.merge()
        if not keep:
            layer.keep_merged()
    if not keep:
        _eject_layers(model, found.values())
        trained.forget(model)


def _warn_of_ties(model: nn.Module, found: dict[str, AdaptedLayer]) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name, layer in found.items():
        own, W = _home_of_weight(name, layer)
        if others := [other for other in names.get(id(W), []) if other != own]:
            warnings.warn(
                f"{own} was tied to {', '.join(others)}, which keeps the original: the merged weight is untied. "
                "Tell the model so before saving it (Hugging Face: config.tie_word_embeddings = False).",
                stacklevel=3,
            )


def _home_of_weight(name: str, layer: AdaptedLayer) -> tuple[str, Tensor]:
    """The name of the Parameter that the layer's weight is in, and that Parameter."""
    if isinstance(layer, layers.Projection):
        owner = layer.owner
        assert isinstance(owner, layers.MultiheadAttentionLoRA)
        return join(name.rpartition(".")[0], layer.slot), owner.original(layer.slot)
    return join(name, "weight"), layer.pristine_weight


def unmerge(model: nn.Module) -> None:
    """Give every merged layer the very Parameter back that `merge` set aside."""
    for layer in require_adapted(model).values():
        layer.unmerge()


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """`merge` inside the block; layers that were not merged before it are unmerged after it.

    >>> import loralib as lora
    >>> model = nn.Sequential(lora.Linear(4, 4, r=2))
    >>> with lora.merged(model):
    ...     model[0].merged
    True
    >>> model[0].merged
    False
    """
    ours = [layer for layer in require_adapted(model).values() if not layer.merged]
    try:
        merge(model)
        yield model
    finally:
        for layer in ours:
            layer.unmerge()


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """The bare base model inside the block: no update acts, and tensors trained beside them are the originals.

    >>> import loralib as lora
    >>> model = nn.Sequential(lora.Linear(4, 4, r=2))
    >>> with lora.disabled(model):
    ...     y = model(torch.ones(1, 4))
    """
    found = [layer for layer in require_adapted(model).values() if not layer.disabled]
    beside = [(module, kept) for _, module, kept in trained.records(model) if not kept.swapped]
    before = [(layer, layer.merged, layer.training) for layer in found]
    try:
        for layer in found:
            layer.unmerge()
            layer.disabled = True
        for module, kept in beside:
            trained.swap_originals(module, kept)
        yield model
    finally:
        for module, kept in reversed(beside):
            if kept.swapped:
                trained.swap_originals(module, kept)
        for layer, was_merged, was_training in before:
            layer.disabled = False
            follows_mode = layer.merge_weights and layer.training != was_training
            if (not layer.training) if follows_mode else was_merged:
                layer.merge()
