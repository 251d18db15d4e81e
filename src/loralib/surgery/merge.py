"""Merging the updates of a whole model into its weights and back, and switching them off for a while."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import choices, layers, quant, tensors
from ..choices import MergeInto
from ..errors import ConfigError, LayerError
from ..layers import AdaptedLayer, baked_state_dict
from ..printing import short
from . import shared
from .eject import check_all, eject_layers
from .module_tree import join
from .resized import check_sizes
from .saved_modules import forget, swap_originals
from .survey import Survey
from .trainable import factor_names
from .wrappers import plain_name


def merge(model: nn.Module, keep: bool = True, into: MergeInto = "dense", most_lost: float = 0.5) -> dict[str, float]:
    """Merge all LoRA updates into their weights (W + ΔW), so that each layer is as fast as the plain one (paper, section 4.1).

    A weight tied to another module stays untouched there; the merged layer has its own.

    Args:
        model: A model with LoRA layers.
        keep: Keep the original weights, so that `unmerge` restores them bit for bit. With False the merge is final: the model
            becomes a plain one with the merged weights (and the tensors trained in full), and the originals' memory is free.
        into: Where the base is quantized: "dense" merges into the dequantized weight, so that nothing of the update is lost,
            and the layer is a plain one while it is merged; "same" quantizes the merged weight as the base's was.
        most_lost: Refuse to merge into "same" where more than this share of a layer's update would be lost.

    Returns:
        The share of the update that quantizing again lost, by layer; empty where nothing was.

    Raises:
        LayerError: When the model has no LoRA layers, a weight cannot be merged, or too much of an update would be lost.
            Nothing is changed then.
        ConfigError: When `into` or `most_lost` is none.
        ArgumentError: When `model` is not a module.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
        >>> _ = lora.merge(model, keep=False)
        >>> model
        Sequential(
          (0): Linear(in_features=8, out_features=8, bias=True)
        )
    """
    if into not in choices.names(MergeInto):
        raise ConfigError(f"into={short(into)}: choose one of {', '.join(choices.names(MergeInto))}. Nothing was changed.")
    if isinstance(most_lost, bool) or not isinstance(most_lost, int | float) or not most_lost >= 0:
        raise ConfigError(f"most_lost={short(most_lost)}: must be a number of at least 0. Nothing was changed.")
    read = Survey(model)
    read.require_adapted()
    with _all_into(read, into):
        left = _to_merge(read, read.adapted)
        if not keep:
            check_all(read.carriers, layers.eject_problem, "merged for good")
            _warn_of_ties(read)
        for layer in left.values():
            layer.merge_fitting()
        lost = _lost(read, most_lost)
        if not keep:
            _check_plain(read)
    if not keep:
        wide = [layer for layer in read.adapted.values() if isinstance(layer, layers.LinearLoRA) and layer.is_wider()]
        for layer in read.adapted.values():
            layer.keep_merged()
        eject_layers(read)
        forget(read.modules.values())
        for made in wide:
            made.to(_usual_dtype(read))
        _forget_quantization(read)
    return lost


def _usual_dtype(read: Survey) -> torch.dtype:
    """The dtype of most of the plain parameters in layers that are not adapted."""
    others = [p for name, p in read.parameters.items() if name.rpartition(".")[0] not in read.adapted]
    plain = [parameter for parameter in others if tensors.kind(parameter) == "plain"]
    counts = Counter({p.dtype: 0 for p in plain})
    for parameter in plain:
        counts[parameter.dtype] += parameter.numel()
    return max(counts, key=counts.__getitem__, default=torch.float32)


@contextmanager
def _all_into(read: Survey, into: MergeInto) -> Iterator[None]:
    """Quantized layers are merged into that inside the block; when it raises, all layers are as they were, merged or not."""
    merged = [layer for layer in read.adapted.values() if layer.merged]
    changed: dict[AdaptedLayer, dict[str, Any]] = {
        layer: {name: vars(layer)[name] for name in ("into", "share_lost") if name in vars(layer)}
        for layer in read.adapted.values()
        if isinstance(layer, layers.LinearLoRA) and layer.into != into and layer.quantized() is not None
    }
    try:
        for layer in changed:
            layer.unmerge()
            vars(layer)["into"] = into
        yield
    except BaseException:
        for layer in {*read.adapted.values()} - {*merged} | {*changed}:
            layer.unmerge()
        for layer, own in changed.items():
            for name in ("into", "share_lost"):
                vars(layer).pop(name, None)
            vars(layer).update(own)
        for layer in merged:
            if not layer.merged:
                layer.merge()
        raise


def _lost(read: Survey, most: float) -> dict[str, float]:
    """The share of each update that quantizing again lost; `LayerError` where it is more than `most`."""
    found = {
        name: layer.share_lost
        for name, layer in read.adapted.items()
        if isinstance(layer, layers.LinearLoRA) and layer.merged and layer.into == "same" and layer.share_lost is not None
    }
    worst = max(found, key=found.__getitem__, default="")
    if worst and found[worst] > most:
        raise LayerError(
            f"{worst!r} would lose {found[worst]:.0%} of its update when its weight is quantized again, more than "
            f"most_lost={most:g} allows; merge into='dense', or allow it. Nothing was changed."
        )
    return found


def _check_plain(read: Survey) -> None:
    """`LayerError` where a layer that holds a dense weight cannot be made a plain one."""
    for name, layer in read.adapted.items():
        if isinstance(layer, layers.LinearLoRA) and (problem := layer.plain_problem()):
            raise LayerError(f"{name!r} cannot be merged for good: {problem}. Nothing was changed.")


def _forget_quantization(read: Survey) -> None:
    """Let a model of transformers that has no quantized layer any more not say that it is quantized."""
    model: Any = read.model
    if any(isinstance(m, nn.Linear) and quant.of(m, m._parameters.get("weight")) is not None for m in read.modules.values()):
        return
    if vars(model).get("hf_quantizer") is not None:
        for name in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
            vars(model).pop(name, None)
        vars(model.config).pop("quantization_config", None)


def _to_merge(read: Survey, adapted: Mapping[str, AdaptedLayer]) -> dict[str, AdaptedLayer]:
    """Those of the `adapted` layers that need merging; `LayerError` when one of them cannot be merged."""
    shared.check_not_flattened(read, "merged")
    check_sizes(read, "merged")
    left = {name: layer for name, layer in adapted.items() if layer.needs_merging()}
    check_all(left, lambda layer: layer.merge_problem(), "merged")
    shared.check_not_sharded(read, adapted, "merged")
    return left


def _warn_of_ties(read: Survey) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in read.parameters.items():
        names.setdefault(id(parameter), []).append(name)
    for name, layer in read.adapted.items():
        own, W = _home_of_weight(name, layer)
        if others := [other for other in names.get(id(W), []) if other != own]:
            warnings.warn(
                f"{own} was tied to {', '.join(others)}, which keeps the original: the merged weight is untied. "
                "Tell the model so before saving it (Hugging Face: config.tie_word_embeddings = False).",
                stacklevel=3,
            )


def _home_of_weight(name: str, layer: AdaptedLayer) -> tuple[str, Tensor]:
    """The name of the Parameter that the layer's weight is in, and that Parameter."""
    if isinstance(layer, layers.OwnedWeight):
        owner = layer.owner
        assert isinstance(owner, layers.Owner)
        return join(name.rpartition(".")[0], layer.slot), owner.original(layer.slot)
    return join(name, "weight"), layer.pristine_weight


def unmerge(model: nn.Module) -> None:
    """Restore the original weights of all merged layers: the same Parameter objects that `merge` replaced, bit for bit.

    Args:
        model: A model with LoRA layers; those that are not merged stay as they are.

    Raises:
        LayerError: When the model has no LoRA layers, or a layer was resized while it was merged.
        ArgumentError: When `model` is not a module.

    Example:
        >>> model = nn.Sequential(lora.Linear(4, 4, r=2))
        >>> W = model[0].weight
        >>> _ = lora.merge(model)
        >>> lora.unmerge(model)
        >>> model[0].weight is W
        True
    """
    for layer in Survey(model).require_adapted().values():
        layer.unmerge()


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager: merge inside the block. Layers that were not merged before it are unmerged after it.

    Args:
        model: A model with LoRA layers.

    Yields:
        The model.

    Raises:
        LayerError: When the model has no LoRA layers, or a weight cannot be merged.
        ArgumentError: When `model` is not a module.

    Example:
        >>> model = nn.Sequential(lora.Linear(4, 4, r=2))
        >>> with lora.merged(model):
        ...     model[0].merged
        True
        >>> model[0].merged
        False
    """
    read = Survey(model)
    ours = {name: layer for name, layer in read.require_adapted().items() if not layer.merged}
    left = _to_merge(read, ours)
    try:
        for layer in left.values():
            layer.merge_fitting()
        yield model
    finally:
        for layer in ours.values():
            layer.unmerge()


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the plain model has with W + ΔW for weights: to be loaded, or saved, where there is no LoRA.

    Names are those of the model without LoRA and without wrappers (DDP, `torch.compile` …). Tensors trained in full are as
    trained. Merging leaves the model as it is; a layer that is merged already shares its weight's memory with the result.

    Args:
        model: A model with LoRA layers, merged or not.

    Returns:
        All parameters and persistent buffers but the factors, by name.

    Raises:
        LayerError: When the model has no LoRA layers or a weight cannot be merged (see `merge`), or inside `disabled`.
        ArgumentError: When `model` is not a module.

    Example:
        >>> model = nn.Sequential(lora.Linear(4, 4, r=2))
        >>> list(lora.merged_state_dict(model))
        ['0.weight', '0.bias']
    """
    read = Survey(model)
    read.require_adapted()
    read.check_enabled("merged")
    factors = factor_names(read)
    with merged(model):
        for layer in read.adapted.values():
            layer.merge()  # brings one up to date that was merged before
        state = {plain_name(model, key): tensor for key, tensor in baked_state_dict(model).items()}
    return {name: tensor for name, tensor in state.items() if name not in factors}


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager: run the base model with LoRA disabled, and with `modules_to_save` and biases restored.

    Merged layers are unmerged inside the block and merged again after it.

    Args:
        model: A model with LoRA layers.

    Yields:
        The model.

    Raises:
        LayerError: When the model has no LoRA layers, or is sharded so that tensors cannot be restored.
        ArgumentError: When `model` is not a module.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> x = torch.ones(1, 4)
        >>> before = model(x)
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
        >>> with lora.disabled(model):
        ...     torch.equal(model(x), before)
        True
    """
    read = Survey(model)
    found = [layer for layer in read.require_adapted().values() if not layer.disabled]
    if any(kept.originals for _, _, kept in read.records):
        shared.check_not_flattened(read, "disabled")
        read.check_originals("disabled")
        shared.check_not_sharded(read, read.replaced_names, "disabled")
    check_sizes(read, "disabled")
    extra = [(module, kept) for _, module, kept in read.records if not kept.swapped]
    before = [(layer, layer.merged, layer.training) for layer in found]
    try:
        for layer in found:
            layer.unmerge()
            layer.disabled = True
        for module, kept in extra:
            swap_originals(module, kept)
        yield model
    finally:
        for module, kept in reversed(extra):
            if kept.swapped:
                swap_originals(module, kept)
        for layer, was_merged, was_training in before:
            layer.disabled = False
            follows_mode = layer.merge_weights and layer.training != was_training
            if (not layer.training) if follows_mode else was_merged:
                layer.merge()
