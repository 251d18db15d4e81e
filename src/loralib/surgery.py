"""LoRA on whole models: put it in and take it out, merge and unmerge it, switch it off for a while.

Every function works in place and either succeeds or changes nothing: it first plans, collecting all problems, and only
then acts. Modes (`training`) and `requires_grad` flags of what was there before are left as found.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import layers, patterns, trained
from .adapter import LoRAUpdate
from .config import ALL_LINEAR, LoRAConfig
from .errors import LayerError, TargetError
from .layers import AdaptedLayer
from .patterns import within
from .trained import check_enabled, join, unwrap

# --- finding layers -------------------------------------------------------------------------------------------------


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The layers of `model` that carry an update, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLayer) and m.r}


def require_adapted(model: nn.Module) -> dict[str, AdaptedLayer]:
    """`adapted_layers`; `LayerError` when there are none, and nothing trained beside any either."""
    found = adapted_layers(model)
    if not found and not any(True for _ in trained.records(model)):
        raise LayerError(
            f"{type(model).__name__} has no layer with a LoRA update; inject a LoRAConfig or attach an adapter first."
        )
    return found


def _saved_modules(model: nn.Module, config: LoRAConfig) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    return patterns.match(names, config.modules_to_save, "modules_to_save", type(model).__name__)


def _output_embedding(model: nn.Module) -> nn.Module | None:
    """The layer that maps hidden states to the vocabulary, where the model follows Hugging Face's protocol for it."""
    protocol: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    return protocol() if protocol else None


def _read_without_call(model: nn.Module, name: str) -> bool:
    """Whether the layer is the output projection of an `nn.MultiheadAttention`, whose weight is read, never called."""
    return bool(name) and isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)


def layer_problem(model: nn.Module, name: str, module: nn.Module) -> str | None:
    """Why the layer `name` of `model` cannot be given an update, or None."""
    if _read_without_call(model, name):
        return "nn.MultiheadAttention reads its weight without calling it, so an update would have no effect; exclude it"
    return layers.adoption_problem(module)


def find_targets(model: nn.Module, config: LoRAConfig) -> list[str]:
    """The names of the layers that `config` targets in `model`, in the model's order.

    Raises `TargetError` when a pattern matches nothing or matches a layer that cannot be adapted.
    """
    modules, where = dict(model.named_modules()), type(model).__name__
    if layers.adapted_class(type(model)):
        raise TargetError(f"{where} is itself a layer, and layers are known by name; put it in an nn.Sequential first.")
    if config.target_modules == ALL_LINEAR:
        saved, output = _saved_modules(model, config), _output_embedding(model)
        names = [n for n, m in modules.items() if isinstance(m, nn.Linear) and m is not output and not within(n, saved)]
        if not names:
            raise TargetError(f"target_modules={ALL_LINEAR!r}: {where} has no linear layer to adapt. Nothing was changed.")
    else:
        names = patterns.match([n for n in modules if n], config.target_modules, "target_modules", where)
        if not names:
            raise TargetError("target_modules=[] names no layer to adapt. Nothing was changed.")
    if config.exclude_modules:
        excluded = set(patterns.match([n for n in modules if n], config.exclude_modules, "exclude_modules", where))
        names = [name for name in names if name not in excluded]
        if not names:
            raise TargetError(f"exclude_modules leaves no layer of {where} to adapt. Nothing was changed.")
    for name in names:
        if problem := layer_problem(model, name, modules[name]):
            raise TargetError(f"{name!r} of {where} cannot be adapted: {problem}. Nothing was changed.")
    return names


# --- in and out -----------------------------------------------------------------------------------------------------


def inject(model: nn.Module, config: LoRAConfig, dtype: torch.dtype | None = None) -> list[str]:
    """Give every layer of `model` that `config` targets a LoRA update, in place; the names of those layers are returned.

    B starts at zero, so the model computes bit for bit what it did. dtype: of the factors; None means float32 where the
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
    patterns.check_lookup(config.rank_pattern, names, "rank_pattern")
    patterns.check_lookup(config.alpha_pattern, names, "alpha_pattern")
    beside = [name for name in trained.named_tensors(model) if within(name, saved)]
    beside += sorted(trained.bias_names(model, config.bias, names) - set(beside))
    if problem := trained.tie_problem(model, beside):
        fields = f"modules_to_save={list(config.modules_to_save)!r}, bias={config.bias!r}"
        raise TargetError(f"{fields}: {problem}. Nothing was changed.")
    modules = dict(model.named_modules())
    updates = {name: _new_update(name, modules[name], config, dtype) for name in names}
    for name, update in updates.items():
        adopt_in(model, name, modules[name], update, config.lora_dropout)
    kept = trained.record(model)
    kept.bias = config.bias if config.bias != "none" else kept.bias
    kept.modules = tuple(dict.fromkeys([*kept.modules, *saved]))
    trained.set_aside(model, beside)
    return names


def _new_update(name: str, layer: nn.Module, config: LoRAConfig, dtype: torch.dtype | None) -> LoRAUpdate:
    cls, W = layers.adapted_class(type(layer)), layer.weight
    assert cls is not None
    assert isinstance(W, Tensor)
    r = patterns.lookup(config.rank_pattern, name, config.r)
    lora_alpha = patterns.lookup(config.alpha_pattern, name, config.lora_alpha)
    return cls.new_update(layer, r, lora_alpha, config.use_rslora, dtype or torch.promote_types(W.dtype, torch.float32))


def adopt_in(model: nn.Module, name: str, layer: nn.Module, update: LoRAUpdate, lora_dropout: float) -> None:
    """Give the layer `name` of `model` an update, seeing to it that the layer is called."""
    adapted = layers.adopt(layer, update, lora_dropout)
    if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.TransformerEncoderLayer):
        vars(adapted)["_leaves_fast_path"] = adapted.register_forward_pre_hook(_leave_fast_path)


def _leave_fast_path(module: nn.Module, args: Any) -> None:
    """A hook that does nothing: with one on any layer, `nn.TransformerEncoderLayer` calls its layers instead of reading
    their weights in its fast path, which would miss the update."""


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
    for layer in found.values():
        _eject_layer(layer)
    for _, module, kept in reversed(list(trained.records(model))):
        trained.swap_originals(module, kept)
    trained.forget(model)


def _eject_layer(layer: AdaptedLayer) -> None:
    hook = vars(layer).pop("_leaves_fast_path", None)
    if hook is not None:
        hook.remove()
    layers.eject(layer)


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
    _check_all({n: layer for n, layer in found.items() if not layer.merged}, AdaptedLayer.merge_problem, "merged")
    if not keep:
        _check_all(found, layers.eject_problem, "merged for good")
        _warn_of_ties(model, found)
    for layer in found.values():
        layer.merge()
        if not keep:
            merged = layer.weight
            _eject_layer(layer)
            layer.weight = merged
    if not keep:
        trained.forget(model)


def _warn_of_ties(model: nn.Module, found: dict[str, AdaptedLayer]) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name, layer in found.items():
        if others := [other for other in names.get(id(layer.pristine_weight), []) if other != join(name, "weight")]:
            warnings.warn(
                f"{name}.weight was tied to {', '.join(others)}, which keeps the original: the merged weight is untied. "
                "Tell the model so before saving it (Hugging Face: config.tie_word_embeddings = False).",
                stacklevel=3,
            )


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
