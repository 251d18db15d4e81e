"""`check_trained`: after the first backward pass, find the factors that it did not reach.

A layer that its model reads without calling, that the loss does not depend on, or that is merged has factors without a
gradient: training would leave them as they are, without a word.
"""

import warnings

from torch import nn

from ..errors import LayerError
from .module_tree import join
from .survey import Survey

_SHOWN = 8


def check_trained(model: nn.Module) -> dict[str, str]:
    """Warn of LoRA factors that the backward pass did not reach. Call it once, after the first `backward()` and before the
    gradients are cleared.

    A layer that no row of the first batch needs (an expert, a layer that was dropped) is named too.

    Args:
        model: An injected model in training.

    Returns:
        Why each factor that is named does not train; empty when all do. Factors that are frozen are not looked at.

    Raises:
        LayerError: When no factor at all has a gradient, or the model has none.
        ArgumentError: When `model` is not a module.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> lora.check_trained(model)
        {}
    """
    read = Survey(model)
    read.require_adapted()
    found = untrained(read)
    merged = any(layer.merged for layer in read.adapted.values())
    if not merged and all(factor in found for factor in _trainable(read)):
        raise LayerError(
            f"No LoRA factor of {type(read.model).__name__} has a gradient: check after the first backward pass, before "
            "zero_grad(); if that is so, the loss depends on no adapted layer, or all factors are frozen."
        )
    if found:
        warnings.warn(message(found), stacklevel=2)
    return found


def untrained(read: Survey) -> dict[str, str]:
    """Why factors that ought to train have no gradient, by their names."""
    found: dict[str, str] = {}
    for name, layer in read.adapted.items():
        why = (
            "its layer is merged, so its factors do not train; unmerge it"
            if layer.merged
            else "it has no gradient: its layer was not called, or the loss does not depend on it"
        )
        own = layer.adapter_parameters().items()
        found |= {join(name, leaf): why for leaf, factor in own if factor.requires_grad and factor.grad is None}
    return found


def _trainable(read: Survey) -> list[str]:
    layers = read.adapted.items()
    return [join(name, leaf) for name, m in layers for leaf, p in m.adapter_parameters().items() if p.requires_grad]


def partly_untrained(model: nn.Module) -> dict[str, str]:
    """`untrained` where some factors of `model` have a gradient; empty where none has: DeepSpeed keeps them elsewhere."""
    read = Survey(model)
    found = untrained(read) if read.adapted else {}
    return found if len(found) < len(_trainable(read)) else {}


def message(found: dict[str, str]) -> str:
    """The message about factors that do not train."""
    shown = "; ".join(f"{name}: {why}" for name, why in list(found.items())[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    factors = "1 LoRA factor does" if len(found) == 1 else f"{len(found)} LoRA factors do"
    return f"{factors} not train: {shown}{more}."
