"""LoRA on linear layers: y = W·x + b + s·B·A·dropout(x)                         (Hu et al. 2021, equation 3).

    x (..., d)   input                           A (r, d)   Kaiming-uniform at the start
    y (..., k)   output                          B (k, r)   zero at the start, so that training begins at the base
    W (k, d)     the base's weight, frozen       s          lora_alpha / r, or lora_alpha / √r with rsLoRA

An adapted layer *is* its base layer with another class: its weight, keys, ties and hooks stay. What an update does to a weight
(merging, files) is `LoRAUpdate.effective_weight`; how the fast paths compute is `ops`. Neither is here.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops, tensors
from ..adapters.layout import Layout
from ..adapters.updates import LoRAUpdate
from ..architectures import AFFINE
from ..errors import LayerError
from .dropout import probability
from .inputs import by_torchs_name, named_input, takes_x
from .quantized import QuantizedWeight

_AFFINE: set[type] = {nn.Linear}


def declare_affine(cls: type) -> None:
    """Take the forward of layers of class `cls` for W·x + b and nothing else."""
    _AFFINE.add(cls)
    is_affine.cache_clear()


@cache
def is_affine(cls: type) -> bool:
    """Whether layers of class `cls` compute W·x + b and nothing else: it has its forward from a class that is known for it."""
    for base in cls.__mro__:
        if base in _AFFINE or f"{base.__module__}.{base.__qualname__}" in AFFINE:
            return True
        if "forward" in vars(base):
            break
    return False


def needs_weight(cls: type, W: object) -> bool:
    """Whether layers of class `cls` have to compute with the effective weight, because their forward may do more with the
    weight `W`, or with the result, than W·x + b. A quantized weight cannot be replaced: there, the update is added."""
    kind: Any = cls
    return not is_affine(kind) and tensors.kind(W) not in ("quantized", "wrapped")


def _is_tensor(y: Any) -> bool:
    """Whether `y` is a tensor, or stands for one while torch.fx traces."""
    return isinstance(y, Tensor | torch.fx.Proxy)


class LinearLoRA(QuantizedWeight):
    """LoRA for `nn.Linear` and its subclasses, whose own forward stays in use (paper, equation 3).

    A subclass with a forward of its own, which may normalise, scale or quantize the weight, computes with that and the
    effective weight, so that `lora_dropout` cannot act in it; unless `register_layer(cls, LinearLoRA)` says it is W·x + b.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
        >>> isinstance(model[0], lora.layers.LinearLoRA), isinstance(model[0], nn.Linear)
        (True, True)
    """

    own_attributes: ClassVar[tuple[str, ...]] = ("by_weight",)
    by_weight: bool = False  # whether the base's forward is called with the effective weight
    bias: nn.Parameter | None
    fan_in_fan_out: bool = False  # whether the weight is stored as (d, k)
    slices: ops.Slices | None = None  # of a fused projection

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """y (..., k) for x (..., d), which is the first argument, whatever the base layer calls it."""
        if not self.acts:  # no update, merged or disabled
            return self.forward_without_update(*args, **kwargs)  # type: ignore[no-any-return]
        x = args[0] if args else named_input(kwargs)
        try:
            p = probability(self.lora_dropout)
            if p is not None and self.base_is_affine():  # W·x + b and nothing else: one operation with the update
                W = self.weight.t() if self.fan_in_fan_out else self.weight
                return ops.lora_linear(x, W, self.bias, self.lora_A, self.lora_B, self.scaling, p, self.slices)
            if self.by_weight:
                return super().forward(*args, **kwargs)  # type: ignore[no-any-return]
            return self._with_update(self.base_forward(*args, **kwargs), x, p)
        except RuntimeError as error:
            if not isinstance(error, LayerError) or isinstance(error, ops.NoValuesError):
                self.explain(error, x)
            raise

    def _with_update(self, y: Any, x: Tensor, p: float | None) -> Tensor:
        if not _is_tensor(y):
            raise LayerError(f"{self._described()} returns a {type(y).__name__}, to which no update can be added.")
        if self._carried_forward is not None:  # a hook such as accelerate's may have moved x to the weight's device
            x = x.to(self.lora_A.device)
        else:
            ops.check_values(x, self._parameters.get("weight"))
        x, p = (self.lora_dropout(x), 0.0) if p is None else (x, p)
        return ops.add_linear_update(y, x, self.lora_A, self.lora_B, self.scaling, p, self.slices)

    @classmethod
    def layer_problem(cls, layer: nn.Module, lora_dropout: float) -> str | None:
        """Why a plain `layer` cannot be adapted, or None."""
        if not needs_weight(type(layer), getattr(layer, "weight", None)):
            return super().layer_problem(layer, lora_dropout)
        problem = cls.problem_of_weights(layer, lora_dropout)
        known = f"if the forward of {type(layer).__name__} is W·x + b, register_layer(cls, layers.LinearLoRA) says so"
        return f"{problem} ({known})" if problem else None

    def add_factors(self, update: LoRAUpdate) -> None:
        """Take the tensors of `update` as this layer's trainable factors."""
        super().add_factors(update)
        if needs_weight(type(self).base_class, self.weight):
            vars(self)["by_weight"] = True

    @classmethod
    def factor_shapes(cls, layer: nn.Module, r: int, **structure: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A (r, d), B (k, r)."""
        d, k = cls.features(layer)
        return (r, d), (k, r)

    @classmethod
    def layout(cls, layer: nn.Module) -> Layout:
        """(k, d), or transposed."""
        return Layout(transposed=layer.fan_in_fan_out if isinstance(layer, LinearLoRA) else cls.fan_in_fan_out)

    def effective_weight(self, W: Tensor) -> Tensor:
        """W + ΔW with the strides of W, which is a transposed view in a layer of 0.1 with `fan_in_fan_out`. Files hold it
        contiguously; computing so gives the same bits."""
        if not self.fan_in_fan_out or W.is_contiguous():
            return super().effective_weight(W)
        return super().effective_weight(W.contiguous()).t().contiguous().t()

    @classmethod
    def features(cls, layer: nn.Module) -> tuple[int, int]:
        """How many features go in and come out.

        Args:
            layer: A layer of this kind, adapted already or not.

        Returns:
            d and k.
        """
        assert isinstance(layer, nn.Linear)
        return layer.in_features, layer.out_features

    def base_is_affine(self) -> bool:
        """Whether the base computes W·x + b and nothing else.

        Returns:
            False where its class, or the layer itself, has another forward.
        """
        return type(self).base_class.forward is nn.Linear.forward and self._carried_forward is None

    def shape_problem(self, x: Tensor) -> str | None:
        """Why the shape of the input does not fit A, or None."""
        A = self.lora_A
        if x.shape[-1:] == A.shape[1:]:
            return None
        return f"the input has shape {tuple(x.shape)}, and lora_A {tuple(A.shape)} takes {A.shape[1]} features"

    def store_weight(self, fan_in_fan_out: bool) -> None:
        """Store the weight, which is (k, d) so far, as loralib 0.1's `fan_in_fan_out` asks.

        Torch may not read it then without calling the layer, nor while there is an update. It is a transposed view, as in 0.1:
        numbers that are drawn in its place (`nn.init`) are then 0.1's, and each product has the matrix (k, d) as it lies in
        memory.

        Args:
            fan_in_fan_out: Whether to store it as (d, k).
        """
        self.fan_in_fan_out = fan_in_fan_out
        if fan_in_fan_out or self.has_update:
            self.stay_called()
        if fan_in_fan_out:
            W = self.weight
            self.weight = nn.Parameter(W.detach().t(), requires_grad=W.requires_grad)


def transposable_forward(layer: LinearLoRA, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """W·x + b for a layer of 0.1, which may store its weight as (d, k) and calls its input x; `forward` is the base's own."""
    x = args[0] if args else named_input(kwargs)
    return F.linear(x, layer.weight.t(), layer.bias) if layer.fan_in_fan_out else forward(x)


class Linear(LinearLoRA, nn.Linear):  # type: ignore[misc]
    """`nn.Linear` with a LoRA update: y = W·x + b + (lora_alpha / r)·B·A·dropout(x) (paper, equation 3).

    Shapes: x (..., in_features), y (..., out_features), `lora_A` (r, in_features), `lora_B` (out_features, r). With r = 0 it is
    a plain linear layer. With r > 0 the weight is frozen, A starts Kaiming-uniform and B zero, so that the layer starts as the
    plain one.

    Args:
        in_features: As in `nn.Linear`.
        out_features: As in `nn.Linear`.
        r: The rank, 0 for none.
        lora_alpha: The numerator of the scaling.
        lora_dropout: The probability with which the update's input is dropped in training.
        fan_in_fan_out: Store the weight as (in, out).
        merge_weights: Merge on `eval()`, unmerge on `train()`.
        **kwargs: Those of `nn.Linear`.

    Raises:
        ConfigError: When `r`, `lora_alpha` or `lora_dropout` is out of range.

    Example:
        >>> layer = lora.Linear(16, 4, r=2, lora_alpha=4)
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

    @takes_x
    def forward(self, x: Tensor | None = None, **named: Tensor) -> Tensor:  # type: ignore[override]
        """y (..., out_features) for x (..., in_features), which torch calls `input`."""
        if x is None or (type(named) is dict and named):
            x = by_torchs_name(x, named)
        return LinearLoRA.forward(self, x)

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """`nn.Linear`'s output, whichever way the weight is stored."""
        return transposable_forward(self, super().base_forward, args, kwargs)


class Conv1DLoRA(LinearLoRA):
    """LoRA for transformers' `Conv1D`, whose weight is (d, k)."""

    fan_in_fan_out = True

    @classmethod
    def features(cls, layer: nn.Module) -> tuple[int, int]:
        """How many features go in and come out: d and k."""
        W = layer.weight
        assert isinstance(W, Tensor)
        return W.shape[0], W.shape[1]
