"""The low-rank update of one layer as a value, one class for each form that the factors come in.

    ΔW = s·B·A

    LoRAUpdate               A (r, *)          B (k, r, 1…)      linear layers, convolutions, bilinear layers
    EmbeddingUpdate          A (r, V)          B (k, r)          ΔW = s·(B·A)ᵀ, the layout of an embedding's weight (V, k)
    ConvolutionUpdate        A (r, d/g, *)     B (k, r, 1…)      g groups share A
    LegacyConvolutionUpdate  A (r·κ, d·κ)      B (k/g·κ, r·κ)    loralib 0.1's form, for a square kernel κ
    MergedUpdate             A (n·r, d)        B (Σ widths, r)   n slices of a fused projection, a product each
    ProjectionUpdate         A (r, d)          B (k, r)          of torch's nn.MultiheadAttention

d in, k out, r rank, V vocabulary, g groups; `*` is the kernel. `delta` is in the layout in which torch's own layer of that
kind keeps its weight (convolutions that are not transposed, linear layers as (k, d)).
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .config import lora_scaling
from .errors import ConfigError


@dataclass(frozen=True, eq=False)
class LoRAUpdate:
    """The update of one layer: ΔW = s·B·A with A (r, in), B (out, r) and s from `lora_alpha`.

    A convolution's A is (r, in, *kernel) and its B (out, r, 1…); a bilinear layer's A is (r, in1, in2).
    Raises `ConfigError` when the two factors do not share one rank.

    >>> update = LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)
    >>> update.r, update.scaling, update.delta().shape
    (2, 2.0, torch.Size([5, 3]))
    """

    A: Tensor
    B: Tensor
    lora_alpha: float
    use_rslora: bool = False

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ConfigError(
                f"lora_A {tuple(self.A.shape)} and lora_B {tuple(self.B.shape)} are no factors of one update: {problem}."
            )

    def _problem(self) -> str | None:
        A, B = self.A, self.B
        if A.dim() >= 2 and B.dim() >= 2 and B.shape[2:].numel() == 1 and 0 < len(A) == B.shape[1]:
            return None
        return "expected (r, in) and (out, r) with the same r > 0"

    @property
    def r(self) -> int:
        """The rank."""
        return self.A.shape[0]

    @property
    def scaling(self) -> float:
        """The factor s."""
        return lora_scaling(self.r, self.lora_alpha, self.use_rslora)

    def delta(self) -> Tensor:
        """ΔW in at least float32: shape (out, in), or (out, in, *kernel)."""
        return ops.linear_delta(self.A, self.B, self.scaling)

    def form(self) -> list[tuple[str, object]]:
        """What two updates must share for the one to be loaded in the other's place: kind, rank, shapes and structure."""
        fields = dataclasses.fields(self)[len(dataclasses.fields(LoRAUpdate)) :]
        shapes = [
            ("kind", type(self).__name__),
            ("rank", self.r),
            ("lora_A", tuple(self.A.shape)),
            ("lora_B", tuple(self.B.shape)),
        ]
        return [*shapes, *((field.name, getattr(self, field.name)) for field in fields)]


@dataclass(frozen=True, eq=False)
class EmbeddingUpdate(LoRAUpdate):
    """The update of an embedding: A (r, num_embeddings), B (embedding_dim, r), ΔW = s·(B·A)ᵀ.

    >>> EmbeddingUpdate(torch.ones(2, 10), torch.ones(4, 2), lora_alpha=2).delta().shape
    torch.Size([10, 4])
    """

    def delta(self) -> Tensor:
        """ΔW, shape (num_embeddings, embedding_dim), in at least float32."""
        return super().delta().t()


@dataclass(frozen=True, eq=False)
class ConvolutionUpdate(LoRAUpdate):
    """The update of a convolution: A (r, in / groups, *kernel), B (out, r, 1…). All groups share A, so that ΔW as a matrix
    (out, in / groups · kernel) has rank r. `transposed` says for which kind of convolution it was trained; `delta` is in the
    layout (out, in / groups, *kernel) for both.
    """

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
    """The update of a convolution as loralib 0.1 factors it: A (r·κ, in·κ), B (out / groups·κ, r·κ) for a square kernel κ;
    their product is reshaped to the weight's shape, and its rank as a matrix (out, in·κ²) exceeds r.

    >>> A, B = torch.ones(2 * 3, 4 * 3), torch.ones(5 * 3, 2 * 3)
    >>> update = LegacyConvolutionUpdate(A, B, lora_alpha=2, weight_shape=(5, 4, 3, 3))
    >>> update.r, update.delta().shape
    (2, torch.Size([5, 4, 3, 3]))
    """

    weight_shape: tuple[int, ...] = ()

    def _problem(self) -> str | None:
        A, B, shape = self.A, self.B, torch.Size(self.weight_shape)
        matrices = A.dim() == B.dim() == 2 and 0 < len(A) == B.shape[1]
        if len(shape) < 3 or min(shape) < 1 or not matrices or len(A) % shape[-1]:
            return "expected (r·kernel, in·kernel) and (out / groups·kernel, r·kernel)"
        return None if len(B) * A.shape[1] == shape.numel() else f"their product cannot take the weight's shape {tuple(shape)}"

    @property
    def r(self) -> int:
        """The rank that 0.1 was asked for."""
        return self.A.shape[0] // self.weight_shape[-1]

    def delta(self) -> Tensor:
        """ΔW in the weight's shape, in at least float32."""
        return super().delta().reshape(self.weight_shape)


@dataclass(frozen=True, eq=False)
class MergedUpdate(LoRAUpdate):
    """The updates of a fused projection, such as query, key and value in one matrix: the output is cut into slices of
    `widths`, and each slice that `enable_lora` names has its own product of rank r. A (n·r, in) stacks the n first factors,
    B (sum of the enabled widths, r) the second ones.

    >>> A, B = torch.ones(2 * 2, 6), torch.ones(4 + 4, 2)
    >>> update = MergedUpdate(A, B, lora_alpha=2, enable_lora=(True, False, True), widths=(4, 4, 4))
    >>> update.r, update.delta().shape
    (2, torch.Size([12, 6]))
    """

    enable_lora: tuple[bool, ...] = ()
    widths: tuple[int, ...] = ()

    def _problem(self) -> str | None:
        A, B = self.A, self.B
        if min(self.widths, default=1) < 1:
            return f"slices are at least 1 wide, not {self.widths}"
        if len(self.enable_lora) != len(self.widths) or not any(self.enable_lora):
            return f"enable_lora={self.enable_lora} must name at least one of the {len(self.widths)} slices"
        enabled = sum(width for width, on in zip(self.widths, self.enable_lora, strict=True) if on)
        if A.dim() != 2 or B.dim() != 2 or len(B) != enabled or not 0 < len(A) == B.shape[1] * sum(self.enable_lora):
            return f"expected (n·r, in) and ({enabled}, r) for the n={sum(self.enable_lora)} enabled of {self.widths}"
        return None

    @property
    def r(self) -> int:
        """The rank of each slice's product."""
        return self.B.shape[1]

    def delta(self) -> Tensor:
        """ΔW, shape (sum of widths, in), zero in the slices that are not enabled, in at least float32."""
        return ops.merged_linear_delta(self.A, self.B, self.scaling, self.widths, self.enable_lora)

    def plain(self) -> LoRAUpdate:
        """The same ΔW as one update of rank n·r, whose B is zero wherever a slice does not see a first factor.

        >>> A, B = torch.ones(2 * 2, 6), torch.ones(4 + 4, 2)
        >>> update = MergedUpdate(A, B, lora_alpha=2, enable_lora=(True, False, True), widths=(4, 4, 4))
        >>> update.plain().r, torch.equal(update.plain().delta(), update.delta())
        (4, True)
        """
        B, n = ops.block_diagonal(self.B, self.widths, self.enable_lora), sum(self.enable_lora)
        lora_alpha = self.lora_alpha * (n**0.5 if self.use_rslora else n)
        return LoRAUpdate(self.A, B, lora_alpha, self.use_rslora)

    def like_plain(self, update: LoRAUpdate) -> "MergedUpdate | None":
        """The update of this kind, with slices like this one's, whose `plain` is `update`; None where there is none.

        >>> A, B = torch.ones(2 * 2, 6), torch.ones(4 + 4, 2)
        >>> own = MergedUpdate(A, B, lora_alpha=2, enable_lora=(True, False, True), widths=(4, 4, 4))
        >>> torch.equal(own.like_plain(own.plain()).B, own.B)
        True
        """
        n = sum(self.enable_lora)
        is_matrix = type(update) is LoRAUpdate and update.A.dim() == update.B.dim() == 2
        if not is_matrix or update.r % n or len(update.B) != sum(self.widths):
            return None
        r, blocks, enabled = update.r // n, [], 0
        for block, on in zip(update.B.split(self.widths), self.enable_lora, strict=True):
            if on:
                blocks.append(block[:, enabled * r : (enabled + 1) * r])
                enabled += 1
        lora_alpha = update.lora_alpha / (n**0.5 if update.use_rslora else n)
        found = dataclasses.replace(self, A=update.A, B=torch.cat(blocks), lora_alpha=lora_alpha, use_rslora=update.use_rslora)
        if not torch.equal(found.plain().B, update.B):
            return None
        for exact in (self.lora_alpha, round(lora_alpha, 9)):  # a quotient need not be what was multiplied
            if exact > 0 and (written := dataclasses.replace(found, lora_alpha=exact)).plain().lora_alpha == update.lora_alpha:
                return written
        return found


@dataclass(frozen=True, eq=False)
class ProjectionUpdate(LoRAUpdate):
    """The update of one projection of an `nn.MultiheadAttention`: `q_proj`, `k_proj`, `v_proj` or `out_proj` of it."""
