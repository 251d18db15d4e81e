"""Which layers can carry an update, and the class swap that makes them do so and undoes it.

Adding a kind of layer is one file beside this one and one row in the table; `register_layer` adds a row from outside.
"""

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ..adapters.updates import LoRAUpdate
from ..errors import ConfigError, LayerError
from .attention import OutProjectionLoRA, Projection, ProjectionLoRA
from .base import AdaptedLayer, LoRALayer
from .bilinear import BilinearLoRA
from .class_factory import made_to_measure
from .conv import ConvolutionLoRA
from .embedding import EmbeddingBagLoRA, EmbeddingLoRA
from .fused_linear import Conv1DMergedLoRA, MergedLinearLoRA
from .linear import Conv1DLoRA, LinearLoRA

Treatments = tuple[type[AdaptedLayer], ...]

_TREATMENTS: dict[type[nn.Module], Treatments] = {
    nn.Linear: (LinearLoRA, MergedLinearLoRA),
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
_BY_NAME: dict[str, Treatments] = {"transformers.pytorch_utils.Conv1D": (Conv1DLoRA, Conv1DMergedLoRA)}  # not imported for it
_KINDS = (
    "linear, embedding, convolution and bilinear layers, the projections of nn.MultiheadAttention, transformers' Conv1D, "
    "and what register_layer knows"
)

_STATE = ("r", "lora_alpha", "scaling", "use_rslora", "has_update", "merged", "merge_weights", "disabled", "fan_in_fan_out")
_HIDDEN = ("_carried_forward", "_aside")
_FACTORS = ("lora_A", "lora_B", "lora_dropout")


def register_layer(layer_class: type[nn.Module], treatment: type[AdaptedLayer]) -> None:
    """Let `inject` and `attach` adapt layers of `layer_class`, a class of one's own, by `treatment`.

    A treatment derives from `AdaptedLayer` or from the treatment of another kind of layer. The least it says is the shapes of
    the factors that fit a layer, and the effective weight: the base's forward is then called with that. The weight must be
    the layer's Parameter `weight`. Raises `ConfigError` for what is not such a pair of classes, and when another treatment is
    registered for the class.

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
    for value, base in ((layer_class, nn.Module), (treatment, AdaptedLayer)):
        if not isinstance(value, type) or not issubclass(value, base):
            raise ConfigError(
                f"{value!r} is no subclass of {base.__name__}; register_layer takes a layer class and a treatment."
            )
    known = _TREATMENTS.get(layer_class) or _BY_NAME.get(f"{layer_class.__module__}.{layer_class.__qualname__}")
    if known not in (None, (treatment,)):
        raise ConfigError(f"{layer_class.__name__} layers have another treatment already; derive a class and register that.")
    for method in ("factor_shapes", "effective_weight"):
        if not any(method in vars(cls) for cls in treatment.__mro__[: treatment.__mro__.index(AdaptedLayer)]):
            raise ConfigError(f"{treatment.__name__} does not say its {method}; a treatment has to.")
    _TREATMENTS[layer_class] = (treatment,)


def _row(base: type[nn.Module]) -> tuple[type[nn.Module], Treatments] | None:
    """The class in the table that covers `base`, and its treatments."""
    for known in base.__mro__:
        treatments = _TREATMENTS.get(known) or _BY_NAME.get(f"{known.__module__}.{known.__qualname__}")
        if treatments:
            return known, treatments
    return None


def treatment(base: type[nn.Module], update_class: type[LoRAUpdate] | None = None) -> type[AdaptedLayer] | None:
    """How layers of class `base` carry updates of a class (by default, of the first that they can); None when they cannot."""
    row = _row(base)
    fitting = [t for t in row[1] if update_class is None or update_class in t.update_classes] if row else []
    return fitting[0] if fitting else None


def is_linear(layer: nn.Module) -> bool:
    """Whether `layer` is a linear one: a matrix that is multiplied with its input."""
    found = treatment(type(layer))
    return found is not None and issubclass(found, LinearLoRA)


@cache
def _added(treatment: type, known: type, cls: type) -> tuple[frozenset[str], frozenset[str]]:
    """The attributes that a layer gains by `treatment` of the class `known` of the table, and those of them that its own class
    has already."""
    added = frozenset({*_FACTORS, *_STATE, *dir(treatment)} - set(dir(known)))
    return added, frozenset(name for name in added if hasattr(cls, name))


def adoption_problem(layer: nn.Module, lora_dropout: float = 0.0, update_class: type[LoRAUpdate] | None = None) -> str | None:
    """Why `layer` cannot be given an update, or None."""
    if isinstance(layer, LoRALayer):
        carries = layer.has_update if isinstance(layer, AdaptedLayer) else layer.r
        return "it is a LoRA layer already; eject it first" if carries else "it was built with r=0; build it with its rank"
    row, treated_by = _row(type(layer)), treatment(type(layer), update_class)
    if row is None:
        return f"{type(layer).__name__} layers cannot be adapted; those that can are {_KINDS}"
    if treated_by is None:
        kinds = " or ".join(cls.__name__ for t in row[1] for cls in t.update_classes)
        return f"{type(layer).__name__} layers carry a {kinds}, not a {update_class.__name__ if update_class else 'None'}"
    if isinstance(layer, torch.jit.ScriptModule):
        return "it is a compiled TorchScript module; inject before scripting"
    W = getattr(layer, "weight", None)
    if isinstance(W, UninitializedParameter):
        return "its shape is not known yet; run one batch through the model first"
    if not isinstance(W, torch.Tensor):
        return "it has no weight tensor"
    if not W.is_floating_point():
        return f"its weight has dtype {W.dtype}; only floating-point weights can be adapted"
    if type(W).__name__ == "DTensor":
        return "its weight is sharded; inject before fully_shard"
    if W.is_meta and "forward" in vars(layer):
        return "its weight is offloaded; load the model without offloading"
    classes: tuple[Any, ...] = (treated_by, row[0], type(layer))
    added, of_class = _added(*classes)
    own = {*vars(layer), *layer._parameters, *layer._buffers, *layer._modules}
    if taken := sorted((added & own) | of_class):
        return f"it has attributes of its own named {', '.join(taken)}"
    return treated_by.layer_problem(layer, lora_dropout)


def adopt(layer: nn.Module, update: LoRAUpdate, lora_dropout: float = 0.0) -> AdaptedLayer:
    """Make `layer`, in place, a layer that adds `update` to what it computes. The tensors become its factors, uncopied.

    Weight, hooks, mode and `requires_grad` flags stay as they are. Raises `LayerError` when `adoption_problem` finds one.

    >>> layer = nn.Linear(3, 5)
    >>> adopt(layer, LoRAUpdate(torch.ones(2, 3), torch.zeros(5, 2), lora_alpha=2))
    Linear(
      in_features=3, out_features=5, bias=True, r=2, lora_alpha=2
      (lora_dropout): Identity()
    )
    >>> eject(layer)
    Linear(in_features=3, out_features=5, bias=True)
    """
    treated_by = treatment(type(layer), type(update))
    problem = adoption_problem(layer, lora_dropout, type(update)) or (treated_by and treated_by.misfit(layer, update))
    if problem:
        raise LayerError(f"A {type(layer).__name__} layer cannot be adapted: {problem}. Nothing was changed.")
    return adopt_fitting(layer, update, lora_dropout)


def adopt_fitting(layer: nn.Module, update: LoRAUpdate, lora_dropout: float = 0.0) -> AdaptedLayer:
    """`adopt` for a layer and an update that are known to fit."""
    treated_by = treatment(type(layer), type(update))
    assert treated_by is not None
    carried = vars(layer).pop("forward", None)
    layer.__class__ = made_to_measure(treated_by, type(layer))
    assert isinstance(layer, AdaptedLayer)
    LoRALayer.__init__(layer, update.r, update.lora_alpha, lora_dropout, merge_weights=False)
    layer.lora_dropout.train(layer.training)
    layer.add_factors(update)
    if carried is not None:
        vars(layer)["_carried_forward"] = carried
    return layer


def eject_problem(layer: AdaptedLayer) -> str | None:
    """Why `layer` cannot be made what it was, or None."""
    if "forward" in vars(layer):
        return "its forward was replaced after it was adapted (by accelerate hooks, say); undo that first"
    if "base_class" not in vars(type(layer)):
        return f"{type(layer).__name__} is a class of its own, not an adapted {type(layer).base_class.__name__}"
    if vars(layer).get("fan_in_fan_out"):
        return "it was built with fan_in_fan_out=True, and no plain layer stores its weight that way"
    if type(layer._parameters.get("weight")).__name__ == "DTensor":
        return "its weight is sharded; eject before fully_shard"
    return None


def eject(layer: AdaptedLayer) -> nn.Module:
    """Make `layer` the plain layer it was, unmerged, in place. Raises `LayerError` when `eject_problem` finds one."""
    if problem := eject_problem(layer):
        raise LayerError(f"A {type(layer).__name__} layer cannot be ejected: {problem}. Nothing was changed.")
    layer.unmerge()
    carried = layer._carried_forward
    if hook := vars(layer).pop("_stays_called", None):
        hook.remove()
    for name in _FACTORS:
        delattr(layer, name)
    for name in (*_STATE, *_HIDDEN, *layer.own_state):
        vars(layer).pop(name, None)
    layer.__class__ = layer.base_class  # type: ignore[assignment]
    if carried is not None:
        vars(layer)["forward"] = carried
    return layer
