"""`eject`: take LoRA out of a model, which is then what it was."""

from collections.abc import Callable, Iterable

from torch import nn

from .. import layers
from ..errors import LayerError
from ..layers import AdaptedLayer
from .saved_modules import check_enabled, forget, records, swap_originals
from .survey import require_adapted


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
    check_all(found, layers.eject_problem, "ejected")
    eject_layers(model, found.values())
    for _, module, kept in reversed(list(records(model))):
        swap_originals(module, kept)
    forget(model)


def eject_layers(model: nn.Module, adapted: Iterable[AdaptedLayer]) -> None:
    """Make the `adapted` layers of `model` plain again, and the attention modules that hold some of them."""
    for layer in adapted:
        layers.eject(layer)
        if isinstance(layer, layers.Projection):
            del layer.owner._modules[layer.name]
            layers.leave(layer.owner)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            layers.leave(module)


def check_all(found: dict[str, AdaptedLayer], check: Callable[[AdaptedLayer], str | None], verb: str) -> None:
    """`LayerError` when `check` finds a problem with one of the layers in `found`."""
    for name, layer in found.items():
        if problem := check(layer):
            raise LayerError(f"{name!r} cannot be {verb}: {problem}. Nothing was changed.")
