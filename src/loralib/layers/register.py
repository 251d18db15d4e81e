"""Which LoRA class handles which kind of layer.

A kind of layer is one file in this folder and one row in the table; `register_layer` adds a row from outside.
"""

from functools import cache
from typing import Any

from torch import nn

from ..adapters.updates import LoRAUpdate
from ..errors import ConfigError
from ..printing import short
from .base import AdaptedLayer
from .bilinear import BilinearLoRA
from .conv import ConvolutionLoRA
from .embedding import EmbeddingBagLoRA, EmbeddingLoRA
from .experts import ExpertWeight, ExpertWeightLoRA
from .fused_linear import Conv1DFusedLoRA, FusedLinearLoRA
from .linear import Conv1DLoRA, LinearLoRA, declare_affine
from .projection import OutProjectionLoRA, Projection, ProjectionLoRA

Handlers = tuple[type[AdaptedLayer], ...]

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
    ExpertWeight: (ExpertWeightLoRA,),
    nn.modules.linear.NonDynamicallyQuantizableLinear: (OutProjectionLoRA,),
}
_BUILT_IN = tuple({handler for handlers in _HANDLERS.values() for handler in handlers})
_BY_NAME: dict[str, Handlers] = {"transformers.pytorch_utils.Conv1D": (Conv1DLoRA, Conv1DFusedLoRA)}  # not imported for it


def register_layer(layer_class: type[nn.Module], handler: type[AdaptedLayer]) -> None:
    """Let `inject` and `attach` adapt layers of a custom class.

    A subclass of `nn.Linear` with a forward of its own that computes W·x + b and nothing else is registered with
    `layers.LinearLoRA`: then the update is added to what the forward returns, and `lora_dropout` can act.

    Args:
        layer_class: The class of the layers. The weight must be the layer's Parameter `weight`.
        handler: A class that derives from `AdaptedLayer` or from the handler of another kind of layer. It says at least the
            shapes of the factors that fit a layer, and the effective weight: the base's forward is then called with that.

    Raises:
        ConfigError: When the two are not such classes, or the layer class has another handler already.

    Example:
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
        >>> _ = lora.merge(model)
    """
    for value, base in ((layer_class, nn.Module), (handler, AdaptedLayer)):
        if not isinstance(value, type) or not issubclass(value, base):
            raise ConfigError(
                f"{short(value)} is not a subclass of {base.__name__}; register_layer takes a layer class and a handler."
            )
    known = _HANDLERS.get(layer_class) or _BY_NAME.get(f"{layer_class.__module__}.{layer_class.__qualname__}")
    if known not in (None, (handler,)):
        raise ConfigError(f"{layer_class.__name__} layers have another handler already; derive a class and register that.")
    defined = {name for cls in handler.__mro__[: handler.__mro__.index(AdaptedLayer)] for name in vars(cls)}
    needed = ["factor_shapes"] if issubclass(handler, _BUILT_IN) else ["factor_shapes", "effective_weight"]
    if missing := [name for name in needed if name not in defined]:
        raise ConfigError(f"{handler.__name__} does not say its {missing[0]}; a handler has to.")
    kind: Any = layer_class
    inherited = row[1] if (row := row_of(kind)) else ()
    _HANDLERS[layer_class] = inherited if handler in inherited else (handler,)
    if handler.forward is LinearLoRA.forward:
        declare_affine(layer_class)
    row_of.cache_clear()


@cache
def row_of(base: type) -> tuple[type[nn.Module], Handlers] | None:
    """The class in the table that covers `base`, and its handlers."""
    for known in base.__mro__:
        handlers = _HANDLERS.get(known) or _BY_NAME.get(f"{known.__module__}.{known.__qualname__}")
        if handlers:
            return known, handlers
    return None


def handler_of(base: type[nn.Module], update_class: type[LoRAUpdate] | None = None) -> type[AdaptedLayer] | None:
    """The LoRA class for layers of type `base` and the given update class.

    Args:
        base: The class of the layers.
        update_class: The class of the update. Default: the first that fits.

    Returns:
        The LoRA class, or None if unsupported.

    Example:
        >>> lora.layers.handler_of(nn.Linear).__name__, lora.layers.handler_of(nn.LSTM)
        ('LinearLoRA', None)
    """
    kind: Any = base
    row = row_of(kind)
    fitting = [t for t in row[1] if update_class is None or update_class in t.update_classes] if row else []
    return fitting[0] if fitting else None


def is_linear(layer: nn.Module) -> bool:
    """Whether `layer` is a linear layer: a matrix that is multiplied with its input."""
    found = handler_of(type(layer))
    return found is not None and issubclass(found, LinearLoRA)
