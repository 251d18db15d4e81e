"""What kind of state dict is asked for: the type of the mapping that torch hands from module to module while it is filled.

A plain one of a merged layer warns that it holds the originals; `Quiet` is for those who want just that; `Baked` is filled with
the merged weights. A mapping says it to this one call, where a flag would say it to other threads as well.
"""

from collections import OrderedDict
from typing import Any

from torch import nn


class MergedStateDictWarning(UserWarning):
    """`state_dict()` of a merged layer holds its original weight, and the factors, not the merged weight.

    Example:
        >>> import warnings
        >>> layer = lora.Linear(2, 2, r=1)
        >>> layer.merge()
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", lora.MergedStateDictWarning)
        ...     sorted(layer.state_dict())
        ['bias', 'lora_A', 'lora_B', 'weight']
    """

    def __init__(self) -> None:
        super().__init__(
            "This model has merged LoRA layers, and its state_dict() holds their original weights with the factors, as it does "
            "when they are not merged. For W + ΔW under plain names use lora.merged_state_dict(model), or make the merge final "
            "with lora.merge(model, keep=False) first; for the adapter alone, lora.lora_state_dict or lora.extract."
        )


class Quiet(OrderedDict[str, Any]):
    """To be filled with the originals, which whoever asks knows."""


class Baked(OrderedDict[str, Any]):
    """To be filled with what is in place, merged weights included."""


def quiet_state_dict(module: nn.Module, keep_vars: bool = False) -> dict[str, Any]:
    """`module.state_dict()`, which is the same whether or not layers are merged."""
    return _filled(module, Quiet(), keep_vars)


def baked_state_dict(module: nn.Module) -> dict[str, Any]:
    """The tensors that are in place at present."""
    return _filled(module, Baked(), False)


def _filled(module: nn.Module, destination: Any, keep_vars: bool) -> dict[str, Any]:
    destination._metadata = OrderedDict()  # as torch gives its own
    filled: dict[str, Any] = module.state_dict(destination=destination, keep_vars=keep_vars)
    return filled
