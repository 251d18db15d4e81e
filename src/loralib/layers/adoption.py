"""Which layers can carry an update, and the class swap that makes them do so and undoes it.

Adding a kind of layer is one file beside this one and one row in `ADAPTED`.
"""

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ..adapter import LoRAUpdate
from ..errors import LayerError
from .base import AdaptedLayer, LoRALayer, made_to_measure
from .linear import Linear

ADAPTED: dict[type[nn.Module], type[AdaptedLayer]] = {nn.Linear: Linear}

_CONSTRUCTED = ("fan_in_fan_out",)
_STATE = (
    "r",
    "lora_alpha",
    "scaling",
    "use_rslora",
    "merged",
    "merge_weights",
    "disabled",
    "_carried_forward",
    "_set_aside",
    "_flag_at_merge",
)
_FACTORS = ("lora_A", "lora_B", "lora_dropout")
_ABSENT = object()


def adapted_class(base: type[nn.Module]) -> type[AdaptedLayer] | None:
    """The class that a layer of class `base` takes when it is adapted; None when no row of `ADAPTED` covers it."""
    for known in base.__mro__:
        if known in ADAPTED:
            ready = ADAPTED[known]
            return ready if known is base else made_to_measure(ready.__bases__[0], base)
    return None


def adoption_problem(layer: nn.Module) -> str | None:
    """Why `layer` cannot be given an update, or None."""
    if isinstance(layer, LoRALayer):
        return "it is a LoRA layer already; eject it first" if layer.r else "it was built with r=0; build it with its rank"
    if adapted_class(type(layer)) is None:
        return f"{type(layer).__name__} layers cannot be adapted; those of {', '.join(k.__name__ for k in ADAPTED)} can"
    if isinstance(layer, torch.jit.ScriptModule):
        return "it is a compiled TorchScript module; inject before scripting"
    W = layer.weight
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
    taken = [name for name in _added_names(type(layer)) if getattr(layer, name, _ABSENT) is not _ABSENT]
    return f"it has attributes of its own named {', '.join(taken)}" if taken else None


def _added_names(base: type[nn.Module]) -> list[str]:
    """The attributes that a layer of class `base` gains by being adapted."""
    cls = ADAPTED[next(known for known in base.__mro__ if known in ADAPTED)]
    return sorted({*_FACTORS, *dir(cls)} - set(dir(cls.base_class)))


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
    if problem := adoption_problem(layer):
        raise LayerError(f"A {type(layer).__name__} layer cannot be adapted: {problem}. Nothing was changed.")
    cls = adapted_class(type(layer))
    assert cls is not None
    carried = vars(layer).pop("forward", None)
    layer.__class__ = cls
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
    if type(layer) is not adapted_class(type(layer).base_class):
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
    for name in _FACTORS:
        delattr(layer, name)
    for name in (*_STATE, *_CONSTRUCTED):
        vars(layer).pop(name, None)
    layer.__class__ = layer.base_class  # type: ignore[assignment]
    if carried is not None:
        vars(layer)["forward"] = carried
    return layer
