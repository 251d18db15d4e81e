"""loralib 0.1's convolutions: constructors, factors, keys and `layer.conv`.

0.1 factors the weight of a square kernel κ in its own way: A (r·κ, d·κ), B (k/g·κ, r·κ), and B·A is *reshaped* to the shape of
W. `Conv2d` keeps that form, so that checkpoints of 0.1 load, and so do `Conv1d` and `Conv3d` with kernel 1, the only one with
which they worked; injection and the constructors otherwise have true rank r (see `conv`).
"""

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import LayerError
from .class_factory import lora_class
from .conv import ConvolutionLoRA
from .inputs import by_torchs_name, named_input, takes_x, without_input
from .state_dicts import quiet_state_dict


class ConvLoRA(ConvolutionLoRA, nn.Module):
    """What loralib 0.1's convolutions have in common, and a base for custom ones.

    `weight` is the one key of the weight in a state dict; the names of all versions of 0.1 are read (`weight`, `conv.weight`,
    both). With kernel 1, or a square kernel κ of nn.Conv2d or nn.ConvTranspose2d, the factors have 0.1's shapes, `lora_A` (r·κ,
    in·κ) and `lora_B` (out / groups·κ, r·κ); else those of a true rank r, (r, in / groups, *kernel) and (out, r, 1…).

    Args:
        conv_module: torch's class.
        in_channels: As in torch.
        out_channels: As in torch.
        kernel_size: As in torch.
        r: The rank, 0 for none.
        lora_alpha: The numerator of the scaling.
        lora_dropout: The probability with which the update's input is dropped in training.
        merge_weights: Merge on `eval()`, unmerge on `train()`.
        **kwargs: Those of `conv_module`, such as `padding`.

    Raises:
        ConfigError: When `r`, `lora_alpha` or `lora_dropout` is out of range.

    Example:
        >>> layer = lora.ConvLoRA(nn.Conv1d, 4, 8, 3, r=2)
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
            self.__class__ = lora_class(type(self), conv_module)
        conv_module.__init__(self, in_channels, out_channels, kernel_size, **kwargs)
        square = isinstance(self, nn.Conv2d | nn.ConvTranspose2d) and len(set(self.kernel_size)) == 1
        self.legacy = square or set(self.kernel_size) == {1}
        self.build(r, lora_alpha, lora_dropout, merge_weights)
        for name in ("weight", "bias"):  # after the factors, as in 0.1: the state of an optimizer goes by this order
            self._parameters[name] = self._parameters.pop(name)

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the convolution computes; 0.1 calls the input x."""
        return super().base_forward(args[0] if args else named_input(kwargs), *args[1:], **without_input(kwargs))

    @property
    def conv(self) -> "BareConvolution":
        """The convolution without its update, as 0.1's layers hold it: a view, whose tensors and settings are the layer's."""
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
            state = vars(inner) | state | {"legacy": True, "_parameters": state["_parameters"] | inner._parameters}
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
        names = ("stride", "padding", "dilation", "groups", "padding_mode", *(("output_padding",) if layer.transposed else ()))
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
        return {name: t for name, t in quiet_state_dict(self.layer).items() if name in ("weight", "bias")}

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True) -> Any:
        """Load the weight and the bias of a plain convolution."""
        factors = {name: t for name, t in quiet_state_dict(self.layer).items() if name not in ("weight", "bias")}
        return self.layer.load_state_dict(factors | dict(state_dict), strict=strict)

    def take(self, module: nn.Module) -> None:
        """Let the Parameters and settings of `module`, a convolution with a weight of the same shape, become the layer's."""
        base, W = type(self.layer).base_class, module._parameters.get("weight")
        if type(module) is not base or W is None or W.shape != self.layer.weight.shape:
            raise LayerError(f"{module} cannot take the place of {self.module()}. Nothing was changed.")
        for name, parameter in module._parameters.items():
            setattr(self.layer, name, parameter)
        settings = (
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
            "output_padding",
            "_reversed_padding_repeated_twice",
        )
        for name in settings:
            setattr(self.layer, name, getattr(module, name))


def _itself(module: nn.Module) -> nn.Module:
    return module


@takes_x
def _forward(self: ConvLoRA, x: Tensor | None = None, **named: Tensor) -> Tensor:
    """y (n, out, *) for x (n, in, *), which torch calls `input`."""
    if x is None or (type(named) is dict and named):
        x = by_torchs_name(x, named)
    return ConvLoRA.forward(self, x)


class Conv1d(ConvLoRA, nn.Conv1d):  # type: ignore[misc]
    """`nn.Conv1d` with a LoRA update. True rank r, but for kernel 1, with which alone it worked in 0.1.

    Args:
        *args: Those of `ConvLoRA` after the first: in_channels, out_channels, kernel_size, r, lora_alpha, lora_dropout and
            merge_weights.
        **kwargs: Those of `nn.Conv1d`.

    Raises:
        ConfigError: When `r`, `lora_alpha` or `lora_dropout` is out of range.

    Example:
        >>> layer = lora.Conv1d(4, 8, 3, r=2, padding=1)
        >>> layer(torch.zeros(1, 4, 10)).shape, layer.lora_A.shape, layer.lora_B.shape
        (torch.Size([1, 8, 10]), torch.Size([2, 4, 3]), torch.Size([8, 2, 1]))
    """

    base_class: ClassVar[type[nn.Module]] = nn.Conv1d
    forward = _forward  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(nn.Conv1d, *args, **kwargs)


class Conv2d(ConvLoRA, nn.Conv2d):  # type: ignore[misc]
    """`nn.Conv2d` with a LoRA update. For a true rank r inject into `nn.Conv2d`.

    A square kernel κ has 0.1's factors, `lora_A` (r·κ, in·κ) and `lora_B` (out / groups·κ, r·κ).

    Args:
        *args: Those of `ConvLoRA` after the first: in_channels, out_channels, kernel_size, r, lora_alpha, lora_dropout and
            merge_weights.
        **kwargs: Those of `nn.Conv2d`.

    Raises:
        ConfigError: When `r`, `lora_alpha` or `lora_dropout` is out of range.

    Example:
        >>> layer = lora.Conv2d(4, 8, 3, r=2, padding=1)
        >>> layer(torch.zeros(1, 4, 5, 5)).shape, layer.lora_A.shape, layer.lora_B.shape
        (torch.Size([1, 8, 5, 5]), torch.Size([6, 12]), torch.Size([24, 6]))
    """

    base_class: ClassVar[type[nn.Module]] = nn.Conv2d
    forward = _forward  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(nn.Conv2d, *args, **kwargs)


class Conv3d(ConvLoRA, nn.Conv3d):  # type: ignore[misc]
    """`nn.Conv3d` with a LoRA update. True rank r, but for kernel 1, with which alone it worked in 0.1.

    Args:
        *args: Those of `ConvLoRA` after the first: in_channels, out_channels, kernel_size, r, lora_alpha, lora_dropout and
            merge_weights.
        **kwargs: Those of `nn.Conv3d`.

    Raises:
        ConfigError: When `r`, `lora_alpha` or `lora_dropout` is out of range.

    Example:
        >>> lora.Conv3d(4, 8, (1, 3, 3), r=2).lora_A.shape
        torch.Size([2, 4, 1, 3, 3])
    """

    base_class: ClassVar[type[nn.Module]] = nn.Conv3d
    forward = _forward  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(nn.Conv3d, *args, **kwargs)
