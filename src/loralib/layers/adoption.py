"""Which layers can carry an update, and the class swap that makes them do so and undoes it.

Adding a kind of layer is one file in this folder and one row in the table; `register_layer` adds a row from outside.
"""

from functools import cache
from typing import Any

import torch
from torch import nn

from .. import tensors
from ..adapters.updates import LoRAUpdate
from ..config import check_dropout
from ..errors import ConfigError, LayerError
from ..printing import short
from .adopted import own_attributes
from .base import AdaptedLayer
from .bilinear import BilinearLoRA
from .class_factory import can_become, lora_class
from .conv import ConvolutionLoRA
from .embedding import EmbeddingBagLoRA, EmbeddingLoRA
from .fused_linear import Conv1DFusedLoRA, FusedLinearLoRA
from .linear import Conv1DLoRA, LinearLoRA, declare_affine, is_affine
from .lora_layer import LoRALayer
from .projection import OutProjectionLoRA, Projection, ProjectionLoRA

Handlers = tuple[type[AdaptedLayer], ...]

_WEIGHTS = {
    "uninitialized": "its shape is not known yet; run one batch through the model first",
    "missing": "it has no weight tensor",
    "quantized": "its weight has dtype {W.dtype}; only floating-point weights can be adapted",
    "sharded": "its weight is sharded; inject before fully_shard",
}

_HANDLERS: dict[type[nn.Module], Handlers] = {
    nn.Linear: (LinearLoRA, FusedLinearLoRA),
    nn.Embedding: (EmbeddingLoRA,),
    nn.EmbeddingBag: (EmbeddingBagLoRA,),
    nn.Conv1d: (ConvolutionLoRA,),
    nn.Conv2d: (ConvolutionLoRA,),
    nn.Conv3d: (ConvolutionLoRA,),
    nn.ConvTranspose1d: (ConvolutionLoRA,),
    nn.ConvTranspose2d: (ConvolutionLoRA,),
    nn.ConvTranspose3d: (ConvolutionLoRA,),
    nn.Bilinear: (BilinearLoRA,),
    Projection: (ProjectionLoRA,),
    nn.modules.linear.NonDynamicallyQuantizableLinear: (OutProjectionLoRA,),
}
_BUILT_IN = tuple({handler for handlers in _HANDLERS.values() for handler in handlers})
_BY_NAME: dict[str, Handlers] = {"transformers.pytorch_utils.Conv1D": (Conv1DLoRA, Conv1DFusedLoRA)}  # not imported for it
_SHAPED = (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd, nn.Bilinear)  # which say their shape themselves
_KINDS = (
    "linear, embedding, convolution and bilinear layers, the projections of nn.MultiheadAttention, transformers' Conv1D, "
    "and what register_layer knows"
)


def register_layer(layer_class: type[nn.Module], handler: type[AdaptedLayer]) -> None:
    """Let `inject` and `attach` adapt layers of a custom class.

    Args:
        layer_class: The class of the layers. The weight must be the layer's Parameter `weight`.
        handler: A class that derives from `AdaptedLayer` or from the handler of another kind of layer. It says at least the
            shapes of the factors that fit a layer, and the effective weight: the base's forward is then called with that.

    A subclass of `nn.Linear` with a forward of its own that computes W·x + b and nothing else is registered with
    `layers.LinearLoRA`: then the update is added to what the forward returns, and `lora_dropout` can act.

    Raises:
        ConfigError: For what is not such a pair of classes, or when the class has another handler already.

    Example:
        >>> import loralib as lora
        >>> class Scale(nn.Module):
        ...     def __init__(self, height, width):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(height, width))
        ...     def forward(self, x):
        ...         return self.weight * x
        >>> class ScaleLoRA(lora.AdaptedLayer):
        ...     @classmethod
        ...     def factor_shapes(cls, layer, r, **structure):
        ...         height, width = layer.weight.shape
        ...         return (r, width), (height, r)
        ...     def effective_weight(self, W):
        ...         return W + self.scaling * self.lora_B @ self.lora_A
        >>> lora.register_layer(Scale, ScaleLoRA)
        >>> model = nn.Sequential(Scale(3, 4))
        >>> lora.inject(model, lora.LoRAConfig(r=1, target_modules=["0"]))
        ['0']
        >>> lora.merge(model)
    """
    for value, base in ((layer_class, nn.Module), (handler, AdaptedLayer)):
        if not isinstance(value, type) or not issubclass(value, base):
            raise ConfigError(
                f"{short(value)} is not a subclass of {base.__name__}; register_layer takes a layer class and a handler."
            )
    known = _HANDLERS.get(layer_class) or _BY_NAME.get(f"{layer_class.__module__}.{layer_class.__qualname__}")
    if known not in (None, (handler,)):
        raise ConfigError(f"{layer_class.__name__} layers have another handler already; derive a class and register that.")
    said = {name for cls in handler.__mro__[: handler.__mro__.index(AdaptedLayer)] for name in vars(cls)}
    needed = ["factor_shapes"] if issubclass(handler, _BUILT_IN) else ["factor_shapes", "effective_weight"]
    if missing := [name for name in needed if name not in said]:
        raise ConfigError(f"{handler.__name__} does not say its {missing[0]}; a handler has to.")
    kind: Any = layer_class
    inherited = row[1] if (row := _row(kind)) else ()
    _HANDLERS[layer_class] = inherited if handler in inherited else (handler,)
    if handler.forward is LinearLoRA.forward:
        declare_affine(layer_class)
    _row.cache_clear()


@cache
def _row(base: type) -> tuple[type[nn.Module], Handlers] | None:
    """The class in the table that covers `base`, and its handlers."""
    for known in base.__mro__:
        handlers = _HANDLERS.get(known) or _BY_NAME.get(f"{known.__module__}.{known.__qualname__}")
        if handlers:
            return known, handlers
    return None


def handler_of(base: type[nn.Module], update_class: type[LoRAUpdate] | None = None) -> type[AdaptedLayer] | None:
    """The handler of layers of class `base` for an update class (default: the first that fits), or None if there is none."""
    kind: Any = base
    row = _row(kind)
    fitting = [t for t in row[1] if update_class is None or update_class in t.update_classes] if row else []
    return fitting[0] if fitting else None


def is_linear(layer: nn.Module) -> bool:
    """Whether `layer` is a linear layer: a matrix that is multiplied with its input."""
    found = handler_of(type(layer))
    return found is not None and issubclass(found, LinearLoRA)


@cache
def _added(handler: type, known: type, cls: type) -> tuple[frozenset[str], frozenset[str]]:
    """The attributes that `handler` adds to a layer of the class `known` in the table, and those of them that its own class has
    already."""
    added = frozenset({*own_attributes(handler), *dir(handler)} - set(dir(known)))
    return added, frozenset(name for name in added if hasattr(cls, name))


def adoption_problem(layer: nn.Module, lora_dropout: float = 0.0, update_class: type[LoRAUpdate] | None = None) -> str | None:
    """Why `layer` cannot be given an update, or None."""
    if isinstance(layer, LoRALayer):
        carries = layer.has_update if isinstance(layer, AdaptedLayer) else layer.r
        return "it is a LoRA layer already; eject it first" if carries else "it was built with r=0; build it with its rank"
    kind: Any = type(layer)
    row, handler = _row(kind), handler_of(kind, update_class)
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
    """Make `layer`, in place, a layer that adds `update` to what it computes. The tensors become its factors, uncopied.

    Weight, hooks, mode and `requires_grad` flags stay as they are. Raises `LayerError` when `adoption_problem` finds one.

    >>> layer = nn.Linear(3, 5)
    >>> adopt(layer, LoRAUpdate(torch.ones(2, 3), torch.zeros(5, 2), lora_alpha=2))
    Linear(in_features=3, out_features=5, bias=True, r=2, lora_alpha=2)
    >>> eject(layer)
    Linear(in_features=3, out_features=5, bias=True)
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
    """Make `layer` the plain layer it was, unmerged, in place. Raises `LayerError` when `eject_problem` finds one."""
    if problem := eject_problem(layer):
        raise LayerError(f"A {type(layer).__name__} layer cannot be ejected: {problem}. Nothing was changed.")
    layer.unmerge()
    layer.give_back()
    return layer
