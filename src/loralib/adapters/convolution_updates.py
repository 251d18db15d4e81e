"""The updates of convolutions: of true rank r, as PEFT, diffusers and kohya store them, and in loralib 0.1's form."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config import alpha_for
from ..errors import AlgebraError
from .updates import LoRAUpdate


@dataclass(frozen=True, eq=False)
class ConvolutionUpdate(LoRAUpdate):
    """The update of a convolution, of true rank r as PEFT, diffusers and kohya store it. All groups share A.

    As a matrix (out, in / groups · kernel) ΔW has rank r. `delta` is (out, in / groups, *kernel), for transposed convolutions
    too, unless a `Layout` says otherwise.

    Args:
        A: (r, in / groups, *kernel).
        B: (out, r, 1…).
        lora_alpha: The numerator of the scaling.
        use_rslora: Scale by lora_alpha / √r.
        magnitude: Of a DoRA update, (out,).
        groups: Those of the convolution.
        transposed: Whether it was trained for a transposed convolution.

    Example:
        >>> lora.ConvolutionUpdate(torch.ones(2, 4, 3, 3), torch.ones(8, 2, 1, 1), lora_alpha=2).delta().shape
        torch.Size([8, 4, 3, 3])
    """

    kind: ClassVar[str] = "convolution"
    groups: int = 1
    transposed: bool = False

    def _problem(self) -> str | None:
        if self.A.dim() != self.B.dim() or self.A.dim() < 3:
            return "expected (r, in / groups, *kernel) and (out, r, 1…)"
        if self.groups < 1 or len(self.B) % self.groups:
            return f"groups={self.groups} does not divide the output channels"
        return super()._problem()


@dataclass(frozen=True, eq=False)
class LegacyConvolutionUpdate(LoRAUpdate):
    """The update of a convolution as loralib 0.1 factors it, for a square kernel κ.

    B·A is reshaped to the weight's shape; as a matrix (out, in·κ²) its rank exceeds r.

    Args:
        A: (r·κ, in·κ).
        B: (out / groups·κ, r·κ).
        lora_alpha: The numerator of the scaling.
        use_rslora: Scale by lora_alpha / √r.
        magnitude: Not supported: None.
        weight_shape: The weight's shape, (out, in / groups, κ, κ).

    Example:
        >>> A, B = torch.ones(2 * 3, 4 * 3), torch.ones(5 * 3, 2 * 3)
        >>> update = lora.LegacyConvolutionUpdate(A, B, lora_alpha=2, weight_shape=(5, 4, 3, 3))
        >>> update.r, update.delta().shape
        (2, torch.Size([5, 4, 3, 3]))
    """

    kind: ClassVar[str] = "convolution_0_1"
    weight_shape: tuple[int, ...] = ()

    def _problem(self) -> str | None:
        A, B, shape = self.A, self.B, torch.Size(self.weight_shape)
        matrices = A.dim() == B.dim() == 2 and 0 < len(A) == B.shape[1]
        if len(shape) < 3 or min(shape[2:]) < 1 or not matrices or len(A) % shape[-1]:
            return "expected (r·kernel, in·kernel) and (out / groups·kernel, r·kernel)"
        if len(B) * A.shape[1] == shape.numel():
            return None
        return f"their product cannot take the weight's shape {tuple(shape)}"

    @property
    def r(self) -> int:
        """The rank that 0.1 was asked for."""
        return self.A.shape[0] // self.weight_shape[-1]

    may_be_dora: ClassVar[bool] = False

    @property
    def rows_per_rank(self) -> int:
        """The kernel's width κ."""
        return self.weight_shape[-1]

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """The weight's shape, which the factors do not tell."""
        return tuple(self.weight_shape)

    def _product(self) -> Tensor:
        return super()._product().reshape(self.weight_shape)

    def as_matrix(self, W: Tensor) -> Tensor:
        """The weight in the shape of B·A."""
        return W.reshape(len(self.B), -1)

    def plain(self) -> ConvolutionUpdate:
        """The same ΔW as a convolution of kernel κ after one of kernel 1, of rank r·κ² where no output's weights begin within a
        row of the product (so without groups), of full rank elsewhere.

        >>> A, B = torch.randn(2 * 3, 4 * 3), torch.randn(40 * 3, 2 * 3)
        >>> update = LegacyConvolutionUpdate(A, B, lora_alpha=2, weight_shape=(40, 4, 3, 3))
        >>> update.plain().r, torch.allclose(update.plain().delta(), update.delta(), atol=1e-4)
        (18, True)
        """
        k, rest = self.weight_shape[0], self.weight_shape[1:]
        rows, width = len(self.B) // k, torch.Size(rest).numel()
        if len(self.B) % k == 0 and rows * len(self.A) < min(k, width):
            A, B = torch.block_diag(*[self.A] * rows), self.B.reshape(k, rows * len(self.A))
        else:
            wide = torch.promote_types(self.B.dtype, torch.float32)
            dense, A, B = (self.B.to(wide) @ self.A.to(wide)).reshape(k, width), torch.eye(width), torch.eye(k)
            A, B = (A.to(dense), dense) if width <= k else (dense, B.to(dense))
        lora_alpha = alpha_for(self.scaling, len(A), self.use_rslora)
        B = B.reshape(*B.shape, *[1] * (len(rest) - 1))
        return ConvolutionUpdate(A.unflatten(1, rest), B, lora_alpha, self.use_rslora, groups=self._groups)

    @property
    def _groups(self) -> int:
        """How many groups the convolution has: A spans all inputs, the weight those of one group."""
        return max(1, self.A.shape[1] // self.weight_shape[-1] // max(1, self.weight_shape[1]))


@dataclass(frozen=True, eq=False)
class LegacyTransposedUpdate(LegacyConvolutionUpdate):
    """The update of a transposed convolution as loralib 0.1 factors it: B·A is reshaped to the weight's own shape
    (in, out / groups, κ, κ), in which `delta` is, too.

    >>> A, B = torch.ones(2 * 3, 4 * 3), torch.ones(5 * 3, 2 * 3)
    >>> LegacyTransposedUpdate(A, B, lora_alpha=2, weight_shape=(4, 5, 3, 3)).delta().shape
    torch.Size([4, 5, 3, 3])
    """

    kind: ClassVar[str] = "transposed_convolution_0_1"

    def plain(self) -> ConvolutionUpdate:
        """`AlgebraError`: the shapes do not say how many groups the convolution has, on which the plain form depends."""
        raise AlgebraError(
            "The update of a transposed convolution in loralib 0.1's form has no plain form; keep it in the formats "
            "'safetensors' or 'loralib', or inject into the convolution."
        )
