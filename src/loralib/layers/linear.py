"""LoRA on linear layers: y = W·x + b + s·B·A·dropout(x).

`Linear` is both loralib 0.1's drop-in layer and what an injected `nn.Linear` becomes; `LinearLoRA` does the same for any
subclass of `nn.Linear`, whose own forward stays in use, and `Conv1DLoRA` for transformers' `Conv1D`, a linear layer that
stores its weight as (in, out). d in, k out, r rank: W (k, d), A (r, d), B (k, r).
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .base import AdaptedLayer


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The layer's input: the first argument, by torch's name, by 0.1's, or whatever the base layer calls it."""
    named = [kwargs[name] for name in ("input", "x") if name in kwargs]
    x: Tensor = (*args, *named, *kwargs.values())[0]
    return x


def dropout_of(module: nn.Module) -> tuple[float, nn.Module | None]:
    """The probability with which `module` drops now, for an operation that drops by itself; or, for a module of another kind
    that a user put there or one that drops everything, 0 and that module."""
    if isinstance(module, nn.Identity):
        return 0.0, None
    if type(module) is nn.Dropout and not module.inplace and module.p < 1:
        return module.p if module.training else 0.0, None
    return 0.0, module


def transposable_forward(layer: "LinearLoRA", forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What `nn.Linear` computes, for a layer of 0.1 that may store its weight as (in, out) and calls its input x."""
    x = first_input(args, kwargs)
    return F.linear(x, layer.weight.t(), layer.bias) if layer.fan_in_fan_out else forward(x)


class LinearLoRA(AdaptedLayer):
    """The treatment of linear layers."""

    fan_in_fan_out: bool = False
    bias: nn.Parameter | None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """y (..., k) for x (..., d), which is the first argument, whatever the base layer calls it."""
        if not self.acts:
            return self.base_forward(*args, **kwargs)  # type: ignore[no-any-return]
        x = first_input(args, kwargs)
        try:
            return self._updated(x, args, kwargs)
        except RuntimeError as error:
            self.explain(error, x)
            raise

    def _updated(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        p, drop = dropout_of(self.lora_dropout)
        if drop is None and self._is_plain():
            return self.compute(x, self.weight.t() if self.fan_in_fan_out else self.weight, p)
        y: Tensor = self.base_forward(*args, **kwargs)
        if self._carried_forward is not None:  # a hook such as accelerate's may have moved x to the weight's device
            x = x.to(self.lora_A.device)
        return self.add_update(y, x if drop is None else drop(x), p)

    def shape_problem(self, x: Tensor) -> str | None:
        """Why the input has no shape that A can take, or None."""
        A = self.lora_A
        if x.shape[-1:] == A.shape[1:]:
            return None
        return f"the input has shape {tuple(x.shape)}, and lora_A {tuple(A.shape)} takes {A.shape[1]} features"

    def _is_plain(self) -> bool:
        """Whether the base computes W·x + b and nothing else, so that its product and the update's can be one operation."""
        return type(self).base_class.forward is nn.Linear.forward and self._carried_forward is None

    def compute(self, x: Tensor, W: Tensor, p: float) -> Tensor:
        """W·x + b + s·B·A·dropout(x) for W (k, d)."""
        return ops.lora_linear(x, W, self.bias, self.lora_A, self.lora_B, self.scaling, p)

    def add_update(self, y: Tensor, x: Tensor, p: float) -> Tensor:
        """y + s·B·A·dropout(x)."""
        return ops.add_linear_update(y, x, self.lora_A, self.lora_B, self.scaling, p)

    def effective_weight(self, W: Tensor) -> Tensor:
        """W + s·B·A in the layout and dtype of `W`, added in at least float32 and rounded once."""
        return ops.merge_linear(W, self.lora_A, self.lora_B, self.scaling, self.fan_in_fan_out)

    def store_weight(self, fan_in_fan_out: bool) -> None:
        """Store the weight, which is (out, in) so far, as loralib 0.1's `fan_in_fan_out` asks; torch may not read it then
        without calling the layer, nor while there is an update."""
        self.fan_in_fan_out = fan_in_fan_out
        if fan_in_fan_out or self.has_update:
            self.stay_called()
        if fan_in_fan_out:
            W = self.weight
            self.weight = nn.Parameter(W.detach().t().contiguous(), requires_grad=W.requires_grad)

    @classmethod
    def features(cls, layer: nn.Module) -> tuple[int, int]:
        """How many features go in and come out."""
        assert isinstance(layer, nn.Linear)
        return layer.in_features, layer.out_features

    @classmethod
    def factor_shapes(cls, layer: nn.Module, r: int, **structure: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A (r, in), B (out, r)."""
        d, k = cls.features(layer)
        return (r, d), (k, r)


class Linear(LinearLoRA, nn.Linear):  # type: ignore[misc]
    """`nn.Linear` with a LoRA update (paper, equation 3): y = W·x + b + (lora_alpha / r)·B·A·dropout(x).

    Shapes: x (..., in_features), y (..., out_features), `lora_A` (r, in_features), `lora_B` (out_features, r). With r = 0
    it is a plain linear layer. With r > 0 the weight is frozen, A starts Kaiming-uniform and B zero, so that the layer
    starts as the plain one. `fan_in_fan_out` stores the weight as (in, out). `merge_weights` merges on `eval()` and unmerges
    on `train()`. Further keywords go to `nn.Linear`. Raises `ConfigError` for values that cannot work.

    >>> import torch
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
        self.build(r, lora_alpha, lora_dropout, merge_weights)
        self.store_weight(fan_in_fan_out)

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `nn.Linear` computes, whichever way the weight is stored."""
        return transposable_forward(self, super().base_forward, args, kwargs)


class Conv1DLoRA(LinearLoRA):
    """The treatment of transformers' `Conv1D`, whose weight is (in, out)."""

    fan_in_fan_out = True

    @classmethod
    def features(cls, layer: nn.Module) -> tuple[int, int]:
        """How many features go in and come out."""
        W = layer.weight
        assert isinstance(W, Tensor)
        return W.shape[0], W.shape[1]
