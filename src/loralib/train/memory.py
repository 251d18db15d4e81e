"""What training keeps in memory from one step to the next, by the shapes and dtypes of a model alone.

    weights     all parameters and buffers, each once
    gradients   one number for each that is trained, of the parameter's dtype
    optimizer   AdamW: two of that dtype, and 4 bytes a tensor for its count of steps; SGD without momentum: nothing;
                8-bit AdamW, as bitsandbytes keeps it: two bytes, and two scales of 4 bytes for each 256 numbers, but two
                numbers of 4 bytes in tensors of fewer than 4,096

Activations are not part of it: they depend on the batch. A model on the meta device will do.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..surgery.survey import Survey
from ..surgery.trainable import lora_state_dict

_SMALLEST_8_BIT, _BLOCK = 4096, 256


@dataclass(frozen=True)
class Memory:
    """Bytes. trained: how many numbers are. saved: what a checkpoint of the trained part holds, without the optimizer."""

    trained: int
    weights: int
    gradients: int
    optimizer: int
    saved: int

    @property
    def total(self) -> int:
        """Weights, gradients and the state of the optimizer together."""
        return self.weights + self.gradients + self.optimizer


def _adamw(tensor: Tensor) -> int:
    return 2 * tensor.nbytes + 4


def _adamw_8bit(tensor: Tensor) -> int:
    n = tensor.numel()
    return 2 * 4 * n if n < _SMALLEST_8_BIT else 2 * (n + 4 * math.ceil(n / _BLOCK))


OPTIMIZERS: Mapping[str, Callable[[Tensor], int]] = MappingProxyType(
    {"adamw": _adamw, "sgd": lambda tensor: 0, "adamw_8bit": _adamw_8bit}
)  # bytes that each keeps for a parameter


def memory(model: nn.Module, optimizer: str = "adamw") -> Memory:
    """What training what is trainable of `model` keeps. optimizer: one of `OPTIMIZERS`.

    >>> memory(nn.Linear(10, 10, bias=False))
    Memory(trained=100, weights=400, gradients=400, optimizer=804, saved=400)
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Memory(
        trained=sum(parameter.numel() for parameter in trained),
        weights=_bytes([*model.parameters(), *model.buffers()]),
        gradients=_bytes(trained),
        optimizer=sum(map(OPTIMIZERS[optimizer], trained)),
        saved=_bytes(_saved(model)),
    )


def live(model: nn.Module, optimizer: torch.optim.Optimizer) -> Memory:
    """The same of a model that has taken a step, by the tensors that are there."""
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return Memory(
        trained=sum(parameter.numel() for parameter in trained),
        weights=_bytes([*model.parameters(), *model.buffers()]),
        gradients=_bytes(parameter.grad for parameter in trained if parameter.grad is not None),
        optimizer=_bytes(states),
        saved=_bytes(_saved(model)),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of tensors that may come more than once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def _saved(model: nn.Module) -> Iterable[Tensor]:
    if Survey(model).adapted:
        return lora_state_dict(model).values()
    return model.state_dict(keep_vars=True).values()
