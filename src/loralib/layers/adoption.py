"""The class swap that gives a layer an update in place, what keeps a layer from it, and its undoing."""

from functools import cache
from typing import Any

import torch
from torch import nn

from .. import quant, tensors
from ..adapters.updates import LoRAUpdate
from ..config import check_dropout
from ..errors import LayerError
from .adopted import own_attributes
from .base import AdaptedLayer
from .class_factory import can_become, lora_class
from .linear import LinearLoRA, is_affine
from .lora_layer import LoRALayer
from .merging import storage_problem
from .register import handler_of, row_of

_WEIGHTS = {
    "uninitialized": "its shape is not known yet; run one batch through the model first",
    "missing": "it has no weight tensor",
    "quantized": "its weight has dtype {W.dtype}; only floating-point weights can be adapted",
    "sharded": "its weight is sharded; inject before fully_shard",
}

_SHAPED = (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd, nn.Bilinear)  # which say their shape themselves
_KINDS = (
    "linear, embedding, convolution and bilinear layers, the projections of nn.MultiheadAttention, transformers' Conv1D, "
    "and what register_layer knows"
)


@cache
def _added(handler: type, known: type, cls: type) -> tuple[frozenset[str], frozenset[str]]:
    """The attributes that `handler` adds to a layer of the class `known` in the table, and those of them that its own class has
    already."""
    added = frozenset({*own_attributes(handler), *dir(handler)} - set(dir(known)))
    return added, frozenset(name for name in added if hasattr(cls, name))


def adoption_problem(layer: nn.Module, lora_dropout: float = 0.0, update_class: type[LoRAUpdate] | None = None) -> str | None:
    """Why a layer cannot be given an update.

    Args:
        layer: The layer.
        lora_dropout: The probability of dropout on the update's input.
        update_class: The class of the update. Default: the first that the layer takes.

    Returns:
        The reason, or None.

    Example:
        >>> lora.layers.adoption_problem(nn.Linear(2, 2)) is None
        True
        >>> lora.layers.adoption_problem(lora.Linear(2, 2, r=1))
        'it is a LoRA layer already; eject it first'
    """
    if isinstance(layer, LoRALayer):
        carries = layer.has_update if isinstance(layer, AdaptedLayer) else layer.r
        return "it is a LoRA layer already; eject it first" if carries else "it was built with r=0; build it with its rank"
    kind: Any = type(layer)
    row, handler = row_of(kind), handler_of(kind, update_class)
    if problem := quant.problem(layer) or storage_problem(layer):
        return problem
    if row is None:
        return f"{type(layer).__name__} layers cannot be adapted; those that can are {_KINDS}"
    if handler is None:
        kinds = " or ".join(cls.__name__ for t in row[1] for cls in t.update_classes)
        got = update_class.__name__ if update_class else "None"
        return f"expected a {kinds} for a {type(layer).__name__} layer, got a {got}"
    if isinstance(layer, torch.jit.ScriptModule):
        return "it is a compiled TorchScript module; inject before scripting"
    W = getattr(layer, "weight", None)
    of_weight = tensors.kind(W)
    float8 = of_weight == "quantized" and isinstance(W, torch.Tensor) and W.is_floating_point()
    restored = float8 and issubclass(handler, LinearLoRA) and not is_affine(kind)  # by a forward of the layer's own
    restored = restored or (issubclass(handler, LinearLoRA) and quant.of(layer, W) is not None)
    if (problem := _WEIGHTS.get(of_weight)) and not restored:
        return problem.format(W=W)
    if tensors.quantizes_input(W):
        return (
            f"its weight, torchao's {type(W).__name__}, quantizes its input too, so that no gradient passes to the layers "
            "before it; quantize the weights only"
        )
    if of_weight == "partitioned" and not layer.weight.numel() and not issubclass(row[0], _SHAPED):  # type: ignore[operator]
        return "its weight is partitioned by DeepSpeed (ZeRO-3), so its shape is not known; gather it first"
    if of_weight == "offloaded" and "forward" in vars(layer):
        return "its weight is offloaded; load the model without offloading"
    classes: tuple[Any, ...] = (handler, row[0], kind)
    added, of_class = _added(*classes)
    own = (vars(layer), layer._parameters, layer._buffers, layer._modules)
    if of_class or not all(map(added.isdisjoint, own)):
        taken = sorted(of_class.union(*(added.intersection(held) for held in own)))
        return f"it has attributes of its own named {', '.join(taken)}"
    return _class_problem(classes[0], kind) or handler.layer_problem(layer, lora_dropout)


@cache
def _class_problem(handler: type, base: type[nn.Module]) -> str | None:
    """Why no class for layers of class `base` can be made, or None. What else Python raises of it, it raises here, before
    anything has changed."""
    try:
        made = lora_class(handler, base)
    except TypeError as error:
        return f"no class can be derived from {base.__name__} ({error})"
    return None if can_become(base, made) else f"Python lets no {base.__name__} layer change its class"


def adopt(layer: nn.Module, update: LoRAUpdate, lora_dropout: float = 0.0) -> AdaptedLayer:
    """Make `layer`, in place, a layer that adds `update` to what it computes: `inject` for one layer.

    Weight, hooks, mode and `requires_grad` flags stay as they are.

    Args:
        layer: A plain layer.
        update: The update, whose tensors become the layer's factors, uncopied.
        lora_dropout: The probability of dropout on the update's input.

    Returns:
        The layer, which is the same object.

    Raises:
        LayerError: When `adoption_problem` finds one, or the update does not fit.
        ConfigError: When `lora_dropout` is not a probability.

    Example:
        >>> layer = nn.Linear(3, 5)
        >>> lora.layers.adopt(layer, lora.LoRAUpdate(torch.ones(2, 3), torch.zeros(5, 2), lora_alpha=2))
        Linear(in_features=3, out_features=5, bias=True, r=2, lora_alpha=2)
    """
    handler = handler_of(type(layer), type(update))
    problem = adoption_problem(layer, lora_dropout, type(update)) or (handler and handler.misfit(layer, update))
    if problem:
        raise LayerError(f"A {type(layer).__name__} layer cannot be adapted: {problem}. Nothing was changed.")
    return adopt_fitting(layer, update, check_dropout(lora_dropout))


def adopt_fitting(layer: nn.Module, update: LoRAUpdate, lora_dropout: float = 0.0) -> AdaptedLayer:
    """`adopt` for a layer and an update that are known to fit."""
    handler = handler_of(type(layer), type(update))
    assert handler is not None
    layer.__class__ = lora_class(handler, type(layer))
    assert isinstance(layer, AdaptedLayer)
    layer.carry(vars(layer).pop("forward", None))
    try:
        layer.set_up(update.r, update.lora_alpha, lora_dropout, merge_weights=False)
        if lora_dropout and not layer.training:
            layer.get_submodule("lora_dropout").eval()
        layer.add_factors(update)
    except BaseException:
        layer.give_back()
        raise
    return layer


def eject_problem(layer: AdaptedLayer) -> str | None:
    """Why `layer` cannot be made what it was, or None."""
    if "forward" in vars(layer):
        return "its forward was replaced after it was adapted (by accelerate hooks, say); undo that first"
    if "base_class" not in vars(type(layer)):
        return f"{type(layer).__name__} is a class of its own, not an adapted {type(layer).base_class.__name__}"
    if vars(layer).get("fan_in_fan_out"):
        return "it was built with fan_in_fan_out=True, and no plain layer stores its weight that way"
    if tensors.kind(layer._parameters.get("weight")) == "sharded":
        return "its weight is sharded; eject before fully_shard"
    return None


def eject(layer: AdaptedLayer) -> nn.Module:
    """Make `layer` the plain layer it was, unmerged, in place.

    Args:
        layer: An adapted layer.

    Returns:
        The layer, which is the same object.

    Raises:
        LayerError: When it cannot be undone: its forward was replaced since, its weight is sharded, or it was built as a LoRA
            layer with `fan_in_fan_out`.

    Example:
        >>> layer = lora.Linear(3, 5, r=2)
        >>> lora.layers.eject(layer)
        Linear(in_features=3, out_features=5, bias=True)
    """
    if problem := eject_problem(layer):
        raise LayerError(f"A {type(layer).__name__} layer cannot be ejected: {problem}. Nothing was changed.")
    layer.unmerge()
    layer.give_back()
    return layer
