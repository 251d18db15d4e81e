"""LoRA on convolutions: y = W ∗ x + b + s·B ∗ (A ∗ dropout(x)).

d in, k out, g groups, r rank: W (k, d/g, *kernel), A (r, d/g, *kernel), B (k, r, 1…). A is a convolution like the base's
(stride, padding, dilation and all) onto r channels, B one of kernel 1, so ΔW as a matrix (k, d/g·kernel) has rank r. All
groups share A, which leaves ΔW in the shape of W. A transposed convolution, whose weight is (d, k/g, *kernel), has factors
of the same shapes.

loralib 0.1 factors the weight of a square kernel κ otherwise: A (r·κ, d·κ), B (k/g·κ, r·κ), and B·A is *reshaped* to W's
shape, which is no product of two convolutions: W + ΔW is formed in the forward pass. `Conv2d` keeps that form, so that
checkpoints of 0.1 load, and so do `Conv1d` and `Conv3d` with kernel 1, the only one with which they worked; injection and the
constructors otherwise have true rank r.
"""

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..adapters.updates import ConvolutionUpdate, LegacyConvolutionUpdate, LoRAUpdate
from ..errors import LayerError
from .base import AdaptedLayer
from .class_factory import made_to_measure
from .linear import dropout_of, first_input

_Convolution = nn.modules.conv._ConvNd


class ConvolutionLoRA(AdaptedLayer):
    """The treatment of convolutions, transposed ones included. One whose class has a forward of its own computes with that
    and the effective weight, so `lora_dropout` cannot act in it."""

    update_classes = (ConvolutionUpdate, LegacyConvolutionUpdate)
    own_state = ("legacy",)
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
            return self.base_forward(*args, **kwargs)  # type: ignore[no-any-return]
        if has_own_forward(type(self).base_class):
            return super().forward(*args, **kwargs)  # type: ignore[no-any-return]
        x = first_input(args, kwargs)
        try:
            return self._updated(x, args, kwargs)
        except RuntimeError as error:
            self.explain(error, x)
            raise

    def _updated(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        p, drop = dropout_of(self.lora_dropout)
        plain = drop is None and self._carried_forward is None
        if self.legacy and plain and not p:
            return self._conv_forward(x, self.effective_weight(self.weight), self.bias)  # type: ignore[operator,no-any-return]
        padded, geometry = self._slide(x, *args[1:], **beside(kwargs))
        if not self.legacy and plain and (padded is x or not p):
            A, B = self._first_factor(x), self.lora_B
            return ops.lora_convolution(padded, self.weight, self.bias, A, B, self.scaling, geometry, p)
        y: Tensor = self.base_forward(*args, **kwargs)
        if self._carried_forward is not None:  # a hook such as accelerate's may have moved x to the weight's device
            x = x.to(self.lora_A.device)
        padded, _ = self._slide(self.lora_dropout(x), *args[1:], **beside(kwargs))
        if self.legacy:
            return y + ops.convolve(padded, self.delta().to(x.dtype), None, geometry).to(y.dtype)
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
        return A if self.groups == 1 else A.repeat(self.groups, *[1] * (A.dim() - 1))

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

    def delta(self) -> Tensor:
        """ΔW in the layout of the weight, differentiable, in at least float32."""
        delta = ops.linear_delta(self.lora_A, self.lora_B, self.scaling)
        if self.legacy:
            return delta.reshape(self.weight.shape)
        if self.transposed:  # (k, d/g, *) → (d, k/g, *)
            delta = delta.reshape(self.groups, -1, *delta.shape[1:]).transpose(1, 2).flatten(0, 1)
        return delta

    def effective_weight(self, W: Tensor) -> Tensor:
        """W + ΔW in the dtype of `W`, added in at least float32 and rounded once."""
        if self.legacy:
            A, B = self.lora_A, self.lora_B
            return ops.merge_linear(W.reshape(B.shape[0], A.shape[1]), A, B, self.scaling).view(W.shape)
        return ops.merge_delta(W, self.delta())

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
        return {"legacy": source.legacy if isinstance(source, ConvolutionLoRA) else type(source) is LegacyConvolutionUpdate}

    @classmethod
    def make_update(
        cls, layer: nn.Module, A: Tensor, B: Tensor, lora_alpha: float, use_rslora: bool, **structure: Any
    ) -> LoRAUpdate:
        """The factors as an update of a convolution like `layer`."""
        assert isinstance(layer, _Convolution)
        if structure.get("legacy"):
            return LegacyConvolutionUpdate(A, B, lora_alpha, use_rslora, tuple(layer.weight.shape))
        return ConvolutionUpdate(A, B, lora_alpha, use_rslora, layer.groups, layer.transposed)

    @classmethod
    def layer_problem(cls, layer: nn.Module, lora_dropout: float) -> str | None:
        """Why a plain `layer` cannot be adapted, or None."""
        return cls.problem_of_weights(layer, lora_dropout) if has_own_forward(type(layer)) else None


def beside(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The named arguments without the input, which torch calls `input` and 0.1 x."""
    return {name: value for name, value in kwargs.items() if name not in ("input", "x")}


def has_own_forward(cls: type[nn.Module]) -> bool:
    """Whether a class of convolutions computes with a forward of its own, not torch's."""
    own = [getattr(cls, name) for name in ("forward", "_conv_forward") if hasattr(cls, name)]
    return any(not method.__module__.startswith("torch.nn.modules.conv") for method in own)


class ConvLoRA(ConvolutionLoRA, nn.Module):
    """What loralib 0.1's convolutions have in common, and a base for one's own: `conv_module` is torch's class.

    Parameters and their order are 0.1's; further keywords go to `conv_module`. `weight` is the one key of the weight in a
    state dict; the names of all versions of 0.1 are read (`weight`, `conv.weight`, both). `layer.conv` is a view of the bare
    convolution: what is read from it or assigned to it is the layer's. With nn.Conv2d and a square kernel, or with kernel 1,
    the factors have 0.1's shapes, `lora_A` (r·κ, in·κ) and `lora_B` (out / groups·κ, r·κ); else those of a true rank r,
    (r, in / groups, *kernel) and (out, r, 1…). Raises `ConfigError` for values that cannot work.

    >>> layer = ConvLoRA(nn.Conv1d, 4, 8, 3, r=2)
    >>> isinstance(layer, nn.Conv1d), layer.lora_A.shape, layer.conv.weight is layer.weight
    (True, torch.Size([2, 4, 3]), True)
    """

    def __init__(
        self,
        conv_module: type[nn.Module],
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        merge_weights: bool = True,
        **kwargs: Any,
    ):
        if not isinstance(self, conv_module):
            self.__class__ = made_to_measure(type(self), conv_module)
        conv_module.__init__(self, in_channels, out_channels, kernel_size, **kwargs)
        square = isinstance(self, nn.Conv2d) and len(set(self.kernel_size)) == 1
        self.legacy = square or (set(self.kernel_size) == {1} and not self.transposed)
        self.build(r, lora_alpha, lora_dropout, merge_weights)

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the convolution computes; 0.1 calls the input x."""
        return super().base_forward(first_input(args, kwargs), *args[1:], **beside(kwargs))

    @property
    def conv(self) -> "BareConvolution":
        """The convolution without its update, as 0.1's layers hold it."""
        return BareConvolution(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "conv":
            self.conv.take(value)
        else:
            super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickled state; 0.1 kept the convolution as a module in the layer."""
        inner = state["_modules"].pop("conv", None)
        if inner is not None:
            state = vars(inner) | state | {"legacy": True, "_parameters": inner._parameters | state["_parameters"]}
        super().__setstate__(state)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        rename_legacy_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def rename_legacy_keys(state_dict: dict[str, Tensor], prefix: str) -> None:
    """Give the tensors of a convolution that a version of 0.1 saved the names that they have here."""
    for leaf in ("weight", "bias"):
        if prefix + "conv." + leaf in state_dict:  # where both are there, they are the same tensor
            state_dict[prefix + leaf] = state_dict.pop(prefix + "conv." + leaf)


class BareConvolution:
    """A view of a `ConvLoRA` layer as the convolution in it: its weight, bias and settings are the layer's own, its call and
    its state are those of the convolution alone."""

    def __init__(self, layer: ConvLoRA):
        self.__dict__["layer"] = layer

    def __getattr__(self, name: str) -> Any:
        if name == "layer":  # of a copy in the making
            raise AttributeError(name)
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.layer, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the convolution computes with the weight in place, without the update."""
        return self.layer.base_forward(*args, **kwargs)

    def module(self) -> nn.Module:
        """A plain convolution that shares the weight and bias."""
        layer = self.layer
        base: Any = type(layer).base_class
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        settings = {name: getattr(layer, name) for name in names}
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size
        plain: nn.Module = base(*sizes, **settings, bias=layer.bias is not None, device="meta").train(layer.training)
        plain._parameters.update({name: layer._parameters[name] for name in plain._parameters})
        return plain

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return copy.deepcopy(self.module(), memo)

    def __reduce__(self) -> Any:
        return _itself, (self.module(),)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weight and, where there is one, the bias, by name."""
        return self.module().named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weight and, where there is one, the bias."""
        return self.module().parameters()

    def requires_grad_(self, requires_grad: bool = True) -> "BareConvolution":
        """Set `requires_grad` of the weight and the bias."""
        self.module().requires_grad_(requires_grad)
        return self

    def reset_parameters(self) -> None:
        """Draw the weight and the bias as torch's convolution does."""
        with self.layer.originals():
            self.module().reset_parameters()  # type: ignore[operator]

    def state_dict(self) -> dict[str, Tensor]:
        """The weight and, where there is one, the bias."""
        return {name: t for name, t in self.layer.state_dict().items() if name in ("weight", "bias")}

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True) -> Any:
        """Load the weight and the bias of a plain convolution."""
        factors = {name: t for name, t in self.layer.state_dict().items() if name not in ("weight", "bias")}
        return self.layer.load_state_dict(factors | dict(state_dict), strict=strict)

    def take(self, module: nn.Module) -> None:
        """Let the Parameters and settings of `module`, a convolution with a weight of the same shape, become the layer's."""
        base, W = type(self.layer).base_class, module._parameters.get("weight")
        if type(module) is not base or W is None or W.shape != self.layer.weight.shape:
            raise LayerError(f"{module} cannot take the place of {self.module()}. Nothing was changed.")
        for name, parameter in module._parameters.items():
            setattr(self.layer, name, parameter)
        settings = ("stride", "padding", "dilation", "groups", "padding_mode", "_reversed_padding_repeated_twice")
        for name in settings:
            setattr(self.layer, name, getattr(module, name))


def _itself(module: nn.Module) -> nn.Module:
    return module


class Conv1d(ConvLoRA, nn.Conv1d):  # type: ignore[misc]
    """`nn.Conv1d` with a LoRA update; parameters as `ConvLoRA`'s, without the first. True rank r, but for kernel 1, with which
    alone it worked in 0.1.

    >>> import torch
    >>> layer = Conv1d(4, 8, 3, r=2, padding=1)
    >>> layer(torch.zeros(1, 4, 10)).shape, layer.lora_A.shape, layer.lora_B.shape
    (torch.Size([1, 8, 10]), torch.Size([2, 4, 3]), torch.Size([8, 2, 1]))
    """

    base_class: ClassVar[type[nn.Module]] = nn.Conv1d

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(nn.Conv1d, *args, **kwargs)


class Conv2d(ConvLoRA, nn.Conv2d):  # type: ignore[misc]
    """`nn.Conv2d` with a LoRA update; parameters as `ConvLoRA`'s, without the first. A square kernel κ has 0.1's factors,
    `lora_A` (r·κ, in·κ) and `lora_B` (out / groups·κ, r·κ). For a true rank r inject into `nn.Conv2d`.

    >>> import torch
    >>> layer = Conv2d(4, 8, 3, r=2, padding=1)
    >>> layer(torch.zeros(1, 4, 5, 5)).shape, layer.lora_A.shape, layer.lora_B.shape
    (torch.Size([1, 8, 5, 5]), torch.Size([6, 12]), torch.Size([24, 6]))
    """

    base_class: ClassVar[type[nn.Module]] = nn.Conv2d

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(nn.Conv2d, *args, **kwargs)


class Conv3d(ConvLoRA, nn.Conv3d):  # type: ignore[misc]
    """`nn.Conv3d` with a LoRA update; parameters as `ConvLoRA`'s, without the first. True rank r, but for kernel 1, with which
    alone it worked in 0.1.

    >>> Conv3d(4, 8, (1, 3, 3), r=2).lora_A.shape
    torch.Size([2, 4, 1, 3, 3])
    """

    base_class: ClassVar[type[nn.Module]] = nn.Conv3d

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(nn.Conv3d, *args, **kwargs)
