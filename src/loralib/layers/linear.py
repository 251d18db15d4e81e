"""LoRA on linear layers: y = W·x + b + s·B·A·dropout(x).

`Linear` is both loralib 0.1's drop-in layer and what an injected `nn.Linear` becomes; `LinearLoRA` does the same for any
subclass of `nn.Linear`, whose own forward stays in use. d in, k out, r rank: W (k, d), A (r, d), B (k, r).
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..adapter import LoRAUpdate
from ..config import lora_scaling
from .base import AdaptedLayer, LoRALayer


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    return x


class LinearLoRA(AdaptedLayer):
    """The treatment of linear layers."""

    in_features: int
    out_features: int
    fan_in_fan_out: bool = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """y (..., k) for x (..., d), which is the first argument, whatever the base layer calls it."""
        y: Tensor = self.base_forward(*args, **kwargs)
        if not self.acts:
            return y
        x = _first(args, kwargs)
        if self._carried_forward is not None:  # a hook such as accelerate's may have moved x to the weight's device
            x = x.to(self.lora_A.device)
        return ops.add_linear_update(y, self.lora_dropout(x), self.lora_A, self.lora_B, self.scaling)

    def effective_weight(self, W: Tensor) -> Tensor:
        """W + s·B·A in the layout and dtype of `W`, added in at least float32 and rounded once."""
        delta = ops.linear_delta(self.lora_A, self.lora_B, self.scaling)
        return ops.merge_delta(W, delta.t() if self.fan_in_fan_out else delta)

    @classmethod
    def update_shapes(cls, layer: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A (r, in), B (out, r)."""
        assert isinstance(layer, nn.Linear)
        return (r, layer.in_features), (layer.out_features, r)

    @classmethod
    def new_update(cls, layer: nn.Module, r: int, lora_alpha: float, use_rslora: bool, dtype: torch.dtype) -> LoRAUpdate:
        """A Kaiming-uniform (a = √5, as nn.Linear's own weight) and B zero."""
        assert isinstance(layer.weight, Tensor)
        (shape_A, shape_B), device = cls.update_shapes(layer, r), layer.weight.device
        A = torch.empty(shape_A, dtype=dtype, device=device)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        return LoRAUpdate(A, torch.zeros(shape_B, dtype=dtype, device=device), lora_alpha, use_rslora)

    def extra_repr(self) -> str:
        """The base layer's description and the update's."""
        update = f", r={self.r}, lora_alpha={self.lora_alpha}" if self.r else ", r=0"
        return super().extra_repr() + update + (", merged" if self.merged else "")


class Linear(LinearLoRA, nn.Linear):  # type: ignore[misc]
    """`nn.Linear` with a LoRA update (paper, equation 3): y = W·x + b + (lora_alpha / r)·B·A·dropout(x).

    Shapes: x (..., in_features), y (..., out_features), `lora_A` (r, in_features), `lora_B` (out_features, r). With r = 0
    it is a plain linear layer. With r > 0 the weight is frozen, A starts Kaiming-uniform and B zero, so that the layer
    starts as the plain one. `fan_in_fan_out` stores the weight as (in, out). `merge_weights` merges on `eval()` and unmerges
    on `train()`. Further keywords go to `nn.Linear`. Raises `ConfigError` for values that cannot work.

    >>> layer = Linear(16, 4, r=2, lora_alpha=4)
    >>> layer(torch.zeros(3, 16)).shape, layer.scaling
    (torch.Size([3, 4]), 2.0)
    >>> sorted(layer.state_dict())
    ['bias', 'lora_A', 'lora_B', 'weight']
    >>> layer.eval().merged
    True
    """

    base_class: ClassVar[type[nn.Module]] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **kwargs: Any,
    ):
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        self.fan_in_fan_out = fan_in_fan_out
        if r > 0:
            self.lora_A = nn.Parameter(self.weight.new_zeros((r, in_features)))
            self.lora_B = nn.Parameter(self.weight.new_zeros((out_features, r)))
            self.scaling = lora_scaling(r, lora_alpha)
            self.weight.requires_grad_(False)
        self.reset_parameters()
        if fan_in_fan_out:
            self.weight = nn.Parameter(self.weight.detach().t().contiguous(), requires_grad=self.weight.requires_grad)

    def reset_parameters(self) -> None:
        """Draw the weight and bias as `nn.Linear` does, A Kaiming-uniform, and set B to zero."""
        nn.Linear.reset_parameters(self)
        if self.r:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
            nn.init.zeros_(self.lora_B)

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `nn.Linear` computes, whichever way the weight is stored."""
        if self.fan_in_fan_out:
            return F.linear(_first(args, kwargs), self.weight.t(), self.bias)
        return super().base_forward(*args, **kwargs)
