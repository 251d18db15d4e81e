"""`eject`: take LoRA out of a model, which is then what it was."""

from collections.abc import Callable, Container, Mapping

from torch import nn

from .. import layers
from ..errors import LayerError
from ..layers import AdaptedLayer
from . import shared
from .resized import check_sizes
from .saved_modules import forget, swap_originals
from .survey import Survey


def eject(model: nn.Module) -> None:
    """Take all LoRA updates out of `model`, which is then what it was before, attribute for attribute.

    Merged layers are unmerged first; the originals of tensors trained in full are put back.

    Args:
        model: A model with LoRA layers, merged or not.

    Raises:
        LayerError: When the model has no LoRA layers, or a layer cannot be made plain again (sharded, or hooked since). Nothing
            is changed then.
        ArgumentError: When `model` is not a module.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
        >>> lora.eject(model)
        >>> model
        Sequential(
          (0): Linear(in_features=8, out_features=8, bias=True)
        )
    """
    read = Survey(model)
    read.require_adapted()
    read.check_enabled("ejected")
    shared.check_not_flattened(read, "ejected")
    read.check_originals("ejected")
    check_sizes(read, "ejected")
    check_all(read.carriers, layers.eject_problem, "ejected")
    shared.check_not_sharded(read, read.carriers, "ejected")
    eject_layers(read)
    for _, module, kept in reversed(read.records):
        swap_originals(module, kept)
    forget(read.modules.values())


def eject_layers(read: Survey, but: Container[str] = ()) -> None:
    """Make the adapted layers plain again, except those named in `but`, and the attention modules that hold none any more."""
    for name, layer in read.carriers.items():
        if name in but:
            continue
        layers.eject(layer)
        if isinstance(layer, layers.OwnedWeight):
            del layer.owner._modules[layer.key]
            layers.leave(layer.owner)  # which is not in the model where a projection alone is ejected
    for module in read.modules.values():
        layers.leave(module)
        layers.unguard_fusion(module)


def check_all(found: Mapping[str, AdaptedLayer], check: Callable[[AdaptedLayer], str | None], verb: str) -> None:
    """`LayerError` when `check` finds a problem with one of the layers in `found`."""
    for name, layer in found.items():
        if problem := check(layer):
            raise LayerError(f"{name!r} cannot be {verb}: {problem}. Nothing was changed.")
