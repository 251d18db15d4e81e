"""LoRA on convolutions: y = W ∗ x + b + s·B ∗ (A ∗ dropout(x)).

d in, k out, g groups, r rank: W (k, d/g, *kernel), A (r, d/g, *kernel), B (k, r, 1…). A is a convolution like the base's
(stride, padding, dilation and all) onto r channels, B one of kernel 1, so ΔW as a matrix (k, d/g·kernel) has rank r. All
groups share A, which leaves ΔW in the shape of W. A transposed convolution, whose weight is (d, k/g, *kernel), has factors
of the same shapes.

The factors of loralib 0.1 (`legacy`, see `conv_0_1`) are not two convolutions: W + ΔW is formed in the forward pass.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..adapters.convolution_updates import ConvolutionUpdate, LegacyConvolutionUpdate, LegacyTransposedUpdate
from ..adapters.layout import Layout
from ..adapters.updates import LoRAUpdate
from .base import AdaptedLayer
from .dropout import probability
from .inputs import named_input, without_input

_Convolution = nn.modules.conv._ConvNd


class ConvolutionLoRA(AdaptedLayer):
    """LoRA for convolutions, transposed ones included. One whose class has a forward of its own computes with that
    and the effective weight, so `lora_dropout` cannot act in it."""

    update_classes = (ConvolutionUpdate, LegacyConvolutionUpdate, LegacyTransposedUpdate)
    own_attributes = structure_fields = ("legacy",)
    legacy: bool = False
    bias: nn.Parameter | None
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    groups: int

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """y (n, k, *) for x (n, d, *), or both without n."""
        if not self.acts:
            return self.forward_without_update(*args, **kwargs)  # type: ignore[no-any-return]
        if has_own_forward(type(self).base_class):
            return super().forward(*args, **kwargs)  # type: ignore[no-any-return]
        x = args[0] if args else named_input(kwargs)
        try:
            return self._updated(x, args, kwargs)
        except RuntimeError as error:
            self.explain(error, x)
            raise

    def _updated(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        p = probability(self.lora_dropout)
        plain = p is not None and self._carried_forward is None
        ops.check_values(x, self.lora_A, self.lora_B, self.weight if self._carried_forward is None else None)
        if self.legacy and plain and not p:
            W = ops.reshaped_sum(self.weight, self.lora_A, self.lora_B, self.scaling)
            if self.transposed:
                return self.forward_with(W, x, *args[1:], **without_input(kwargs))  # type: ignore[no-any-return]
            return self._conv_forward(x, W, self.bias)  # type: ignore[operator,no-any-return]
        padded, geometry = self._slide(x, *args[1:], **without_input(kwargs))
        if not self.legacy and plain and (padded is x or not p):
            A, B = self._first_factor(x), self.lora_B
            return ops.lora_convolution(padded, self.weight, self.bias, A, B, self.scaling, geometry, p or 0.0)
        y: Tensor = self.base_forward(*args, **kwargs)
        if self._carried_forward is not None:  # a hook such as accelerate's may have moved x to the weight's device
            x = x.to(self.lora_A.device)
        padded, _ = self._slide(self.lora_dropout(x), *args[1:], **without_input(kwargs))
        if self.legacy:
            delta = self.update_of(self.lora_A, self.lora_B).delta()
            return y + ops.convolve(padded, delta.to(x.dtype), None, geometry).to(y.dtype)
        t = ops.convolve(padded, self._first_factor(x), None, geometry)
        return ops.add_pointwise(y, t, self.lora_B, self.scaling, self.groups)

    def shape_problem(self, x: Tensor) -> str | None:
        """Why the input has no shape that the convolution can take, or None."""
        n, d = len(self.kernel_size), self.in_channels
        if x.dim() in (n + 1, n + 2) and x.shape[-n - 1] == d:
            return None
        return f"the input has shape {tuple(x.shape)}, and the layer takes {d} channels and {n} dimensions more"

    def _first_factor(self, x: Tensor) -> Tensor:
        """A for all groups, as the weight of a convolution like the base's onto g·r channels."""
        A = self.lora_A.to(x.dtype)
        if self.transposed:
            A = A.transpose(0, 1)  # (d/g, r, *kernel)
        return A if self.groups == 1 else A.repeat(self.groups, *[1] * (len(self.kernel_size) + 1))

    def _slide(self, x: Tensor, output_size: list[int] | None = None) -> tuple[Tensor, ops.Geometry]:
        """How the base slides over `x`, and `x` with what padding torch's convolution does not do by itself."""
        n, stride, dilation, output_padding = len(self.kernel_size), self.stride, self.dilation, self.output_padding
        if self.transposed:
            padding = tuple(int(p) for p in self.padding)
            output_padding = self._output_padding(x, output_size, stride, padding, self.kernel_size, n, dilation)  # type: ignore[operator]
        elif self.padding_mode == "zeros" and not isinstance(self.padding, str):
            padding = self.padding
        else:
            around = self._reversed_padding_repeated_twice
            padding = tuple(reversed(around[::2]))
            if self.padding_mode != "zeros" or around[::2] != around[1::2]:
                mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
                x, padding = F.pad(x, around, mode), (0,) * n
        return x, ops.Geometry(stride, padding, dilation, self.transposed, tuple(output_padding), self.groups)

    @classmethod
    def layout(cls, layer: nn.Module) -> Layout:
        """(k, d/g, *kernel), or (d, k/g, *kernel) of a transposed convolution; 0.1's factors make the shape of any weight."""
        assert isinstance(layer, _Convolution)
        legacy = isinstance(layer, ConvolutionLoRA) and layer.legacy
        return Layout(deconvolution=layer.groups if layer.transposed and not legacy else 0)

    @classmethod
    def factor_shapes(cls, layer: nn.Module, r: int, **structure: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A (r, in / groups, *kernel), B (out, r, 1…), or those of 0.1."""
        assert isinstance(layer, _Convolution)
        d, k, g, kernel = layer.in_channels, layer.out_channels, layer.groups, layer.kernel_size
        if structure.get("legacy"):
            return (r * kernel[-1], d * kernel[-1]), (k // g * kernel[-1], r * kernel[-1])
        return (r, d // g, *kernel), (k, r, *[1] * len(kernel))

    @classmethod
    def structure(cls, source: Any) -> dict[str, Any]:
        """In which of the two forms the factors are."""
        return {"legacy": source.legacy if isinstance(source, ConvolutionLoRA) else isinstance(source, LegacyConvolutionUpdate)}

    @classmethod
    def make_update(
        cls, layer: nn.Module, A: Tensor, B: Tensor, lora_alpha: float, use_rslora: bool, **structure: Any
    ) -> LoRAUpdate:
        """The factors as an update of a convolution like `layer`."""
        assert isinstance(layer, _Convolution)
        if structure.get("legacy"):
            kind = LegacyTransposedUpdate if layer.transposed else LegacyConvolutionUpdate
            return kind(A, B, lora_alpha, use_rslora, tuple(layer.weight.shape))
        return ConvolutionUpdate(A, B, lora_alpha, use_rslora, layer.groups, layer.transposed)

    @classmethod
    def layer_problem(cls, layer: nn.Module, lora_dropout: float) -> str | None:
        """Why a plain `layer` cannot be adapted, or None."""
        return cls.problem_of_weights(layer, lora_dropout) if has_own_forward(type(layer)) else None


def has_own_forward(cls: type[nn.Module]) -> bool:
    """Whether a class of convolutions computes with a forward of its own, not torch's."""
    own = [getattr(cls, name) for name in ("forward", "_conv_forward") if hasattr(cls, name)]
    return any(not method.__module__.startswith("torch.nn.modules.conv") for method in own)
