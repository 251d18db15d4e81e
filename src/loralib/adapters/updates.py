"""The low-rank update of one layer as a value, one class for each form that the factors come in.

    ΔW = s·B·A

    LoRAUpdate               A (r, *)          B (k, r, 1…)      linear layers, convolutions, bilinear layers
    EmbeddingUpdate          A (r, V)          B (k, r)          ΔW = s·(B·A)ᵀ, the layout of an embedding's weight (V, k)
    ConvolutionUpdate        A (r, d/g, *)     B (k, r, 1…)      g groups share A
    LegacyConvolutionUpdate  A (r·κ, d·κ)      B (k/g·κ, r·κ)    loralib 0.1's form, for a square kernel κ
    FusedUpdate             A (n·r, d)        B (Σ widths, r)   n slices of a fused projection, a product each
    ProjectionUpdate         A (r, d)          B (k, r)          of torch's nn.MultiheadAttention

d in, k out, r rank, V vocabulary, g groups; `*` is the kernel. `effective_weight` is the one formula of what an update does to
a weight: layers merge with it, and so do models in files. A `Layout` says how the weight is stored; without one it is
(k, d / g, *), and (V, k) for an embedding.

With `magnitude` m (k,) an update is DoRA's (2402.09353): W' = m·(W + s·B·A) / ‖W + s·B·A‖, the norm over all that goes into an
output. What it adds depends on W, so it has an `effective_weight` and no `delta`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .. import ops
from ..config import alpha_for, lora_scaling
from ..errors import AlgebraError, ConfigError
from ..tensors import same_bits
from .layout import Layout

Product = tuple[Tensor, Tensor]

_TENSORS = {"lora_A": "A", "lora_B": "B", "lora_magnitude": "magnitude"}  # the names in files, and the fields


@dataclass(frozen=True, eq=False)
class LoRAUpdate:
    """The update of one layer: ΔW = s·B·A with A (r, in), B (out, r) and s from `lora_alpha`.

    A convolution's A is (r, in, *kernel) and its B (out, r, 1…); a bilinear layer's A is (r, in1, in2). magnitude: (out,), of a
    DoRA update. Two updates are equal when their kind, their fields and every bit of their tensors are.
    Raises `ConfigError` when the two factors do not share one rank.

    >>> update = LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)
    >>> update.r, update.scaling, update.delta().shape
    (2, 2.0, torch.Size([5, 3]))
    """

    A: Tensor
    B: Tensor
    lora_alpha: float
    use_rslora: bool = False
    magnitude: Tensor | None = dataclasses.field(default=None, kw_only=True)
    kind: ClassVar[str] = "linear"  # what files and digests call it
    may_be_dora: ClassVar[bool] = True
    usual_layout: ClassVar[Layout] = Layout()  # of a weight of which nothing else is known
    of_base: ClassVar[frozenset[str]] = frozenset()  # fields that describe the base layer, not the update

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ConfigError(
                f"lora_A {tuple(self.A.shape)} and lora_B {tuple(self.B.shape)} are no factors of one update: {problem}."
            )
        if self.magnitude is not None and (self.magnitude.shape != (len(self.B),) or not self.may_be_dora):
            raise ConfigError(
                f"magnitude {tuple(self.magnitude.shape)} of a {type(self).__name__} with lora_B {tuple(self.B.shape)}: "
                "expected one number an output, for a linear layer, an embedding or a convolution."
            )

    def _problem(self) -> str | None:
        A, B = self.A, self.B
        if A.dim() >= 2 and B.dim() >= 2 and B.shape[2:].numel() == 1 and 0 < len(A) == B.shape[1]:
            return None
        return "expected (r, in) and (out, r) with the same r > 0"

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make up the update, by the names under which they are stored: `lora_A`, `lora_B`, `lora_magnitude`.

        >>> list(LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4).tensors())
        ['lora_A', 'lora_B']
        """
        held = {name: getattr(self, field) for name, field in _TENSORS.items()}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same update with other `tensors`, named as by `tensors()`; those that are left out stay."""
        fields: dict[str, Any] = {_TENSORS[name]: tensor for name, tensor in tensors.items()}
        return dataclasses.replace(self, **fields)

    @property
    def is_dora(self) -> bool:
        """Whether it has magnitudes."""
        return self.magnitude is not None

    @property
    def r(self) -> int:
        """The rank."""
        return self.A.shape[0]

    @property
    def scaling(self) -> float:
        """The factor s."""
        return lora_scaling(self.r, self.lora_alpha, self.use_rslora)

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """The shape of the weight that the update is for, in the canonical layout: (out, in / groups, *kernel)."""
        return (len(self.B), *self.A.shape[1:])

    # --- what it does to a weight -----------------------------------------------------------------------------------

    def delta(self, layout: Layout | None = None) -> Tensor:
        """ΔW in at least float32: shape (out, in), or (out, in, *kernel). `AlgebraError` for DoRA."""
        if self.magnitude is not None:
            raise AlgebraError(
                "What a DoRA update adds depends on the weight W; ask for effective_weight(W) instead of delta()."
            )
        return (layout or self.usual_layout).from_canonical(self._product())

    def _product(self) -> Tensor:
        """s·B·A in the canonical layout."""
        return ops.linear_delta(self.A, self.B, self.scaling)

    def effective_weight(self, W: Tensor, layout: Layout | None = None) -> Tensor:
        """W' for a stored weight W: computed in at least float32, rounded once to the dtype of W, and differentiable.

        Args:
            W: The layer's weight; of a packed tensor, its own rows.
            layout: How `W` is stored; by default (out, in / groups, *kernel), and (V, k) for an embedding.

        Returns:
            W' in the shape and dtype of `W`.

        Example:
            >>> update = LoRAUpdate(torch.zeros(1, 2), torch.zeros(2, 1), lora_alpha=1, magnitude=torch.tensor([10.0, 1.0]))
            >>> update.effective_weight(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
            tensor([[6., 8.],
                    [0., 1.]])
        """
        layout, W = layout or self.usual_layout, self.as_used(W)
        if (strips := self.strips(layout)) is not None:
            return ops.add_strips(W.reshape(self._rows(W), -1), strips, self.scaling).view(W.shape)
        wide = torch.promote_types(torch.promote_types(W.dtype, torch.float32), self.A.dtype)
        canonical = layout.to_canonical(W).to(wide)
        strip = ops.Strip(0, 0, self.B.flatten(1), self.A.flatten(1))
        changed = ops.add_strips(canonical.flatten(1), [strip], self.scaling).view(canonical.shape)
        if self.magnitude is not None:
            norm = torch.linalg.vector_norm(changed.flatten(1), dim=1).clamp_min(torch.finfo(changed.dtype).tiny)
            changed = changed * (self.magnitude.to(changed) / norm).view(-1, *[1] * (changed.dim() - 1))
        return layout.from_canonical(changed).to(W.dtype)

    def strips(self, layout: Layout) -> list[ops.Strip] | None:
        """The products that make up ΔW / s as blocks of the stored weight, seen as a matrix of `_rows` rows; None where there
        are none (DoRA, transposed convolutions)."""
        if self.magnitude is not None or layout.deconvolution:
            return None
        B, A = self.B.flatten(1), self.A.flatten(1)
        return [ops.Strip(0, 0, A.t(), B.t()) if layout.transposed else ops.Strip(0, 0, B, A)]

    def _rows(self, W: Tensor) -> int:
        """How many rows the matrix has to which `strips` are added."""
        return len(W)

    def as_used(self, W: Tensor) -> Tensor:
        """Rows of the stored weight as the base layer uses them, each row by itself."""
        return W

    # --- its products -----------------------------------------------------------------------------------------------

    def products(self) -> list[Product]:
        """What ΔW / s is made of: pairs of matrices B (k, R), A (R, n) whose products, rearranged, fill it without overlap."""
        return [(self.B.flatten(1), self.A.flatten(1))]

    def with_products(self, products: Sequence[Product], lora_alpha: float, use_rslora: bool) -> Self:
        """An update of the same kind and structure made of other `products`, all of one rank."""
        ((B, A),) = products
        A, B = A.unflatten(1, self.A.shape[1:]), B.reshape(*B.shape, *self.B.shape[2:])
        return dataclasses.replace(self, A=A, B=B, lora_alpha=lora_alpha, use_rslora=use_rslora)

    @property
    def rows_per_rank(self) -> int:
        """How many columns of B in `products` one rank stands for."""
        return 1

    def plain(self) -> "LoRAUpdate":
        """The same ΔW as an update of the kind that most formats know: itself, but for slices and 0.1's convolutions."""
        return self

    def structure(self) -> tuple[object, ...]:
        """What the products of two updates must share to be put side by side: all but rank and scaling."""
        own = (value for name, value in self.own_fields() if name not in self.of_base)
        return (type(self), self.A.shape[1:], self.B.shape[0], self.B.shape[2:], *own)

    def own_fields(self) -> list[tuple[str, object]]:
        """The fields that the kind has beside those of all."""
        kind: Any = type(self)
        return [(name, getattr(self, name)) for name in _own_field_names(kind)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LoRAUpdate) or type(other) is not type(self):
            return NotImplemented
        return all(same_bits(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))

    def __hash__(self) -> int:
        return hash((self.structure(), self.r, float(self.lora_alpha), self.use_rslora))

    def form(self) -> list[tuple[str, object]]:
        """What two updates must share for the one to be loaded in the other's place: kind, rank, shapes and structure."""
        shapes = [
            ("kind", self.kind),
            ("rank", self.r),
            ("lora_A", tuple(self.A.shape)),
            ("lora_B", tuple(self.B.shape)),
        ]
        return [*shapes, *((name, value) for name, value in self.own_fields() if name not in self.of_base)]


@cache
def _own_field_names(kind: type) -> tuple[str, ...]:
    shared = len(dataclasses.fields(LoRAUpdate))
    return tuple(field.name for field in dataclasses.fields(kind)[shared:])


@dataclass(frozen=True, eq=False)
class EmbeddingUpdate(LoRAUpdate):
    """The update of an embedding: A (r, num_embeddings), B (embedding_dim, r), ΔW = s·(B·A)ᵀ.

    max_norm, norm_type: those of the base layer, which renormalises the rows of W before the update is added; 0 for none.

    >>> EmbeddingUpdate(torch.ones(2, 10), torch.ones(4, 2), lora_alpha=2).delta().shape
    torch.Size([10, 4])
    """

    kind: ClassVar[str] = "embedding"
    max_norm: float = 0.0
    norm_type: float = 2.0

    usual_layout: ClassVar[Layout] = Layout(transposed=True)
    of_base: ClassVar[frozenset[str]] = frozenset({"max_norm", "norm_type"})

    def as_used(self, W: Tensor) -> Tensor:
        """Rows of the weight (V, k) with norms of at most `max_norm`, by blocks as they are merged."""
        if not self.max_norm or not len(W):
            return W
        blocks = ops.row_blocks(len(W), W.shape[1])
        return torch.cat([torch.renorm(W[first:last], self.norm_type, 0, self.max_norm) for first, last in blocks])


@dataclass(frozen=True, eq=False)
class ConvolutionUpdate(LoRAUpdate):
    """The update of a convolution: A (r, in / groups, *kernel), B (out, r, 1…). All groups share A, so that ΔW as a matrix
    (out, in / groups · kernel) has rank r. `transposed` says for which kind of convolution it was trained; `delta` is in the
    layout (out, in / groups, *kernel) for both, unless a `Layout` says otherwise.
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
    """The update of a convolution as loralib 0.1 factors it: A (r·κ, in·κ), B (out / groups·κ, r·κ) for a square kernel κ;
    their product is reshaped to the weight's shape, and its rank as a matrix (out, in·κ²) exceeds r.

    >>> A, B = torch.ones(2 * 3, 4 * 3), torch.ones(5 * 3, 2 * 3)
    >>> update = LegacyConvolutionUpdate(A, B, lora_alpha=2, weight_shape=(5, 4, 3, 3))
    >>> update.r, update.delta().shape
    (2, torch.Size([5, 4, 3, 3]))
    """

    kind: ClassVar[str] = "convolution_0_1"
    weight_shape: tuple[int, ...] = ()

    def _problem(self) -> str | None:
        A, B, shape = self.A, self.B, torch.Size(self.weight_shape)
        matrices = A.dim() == B.dim() == 2 and 0 < len(A) == B.shape[1]
        if len(shape) < 3 or min(shape) < 1 or not matrices or len(A) % shape[-1]:
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

    def _rows(self, W: Tensor) -> int:
        return len(self.B)

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
        return max(1, self.A.shape[1] // self.weight_shape[-1] // self.weight_shape[1])


@dataclass(frozen=True, eq=False)
class FusedUpdate(LoRAUpdate):
    """The updates of a fused projection, such as query, key and value in one matrix: the output is cut into slices of
    `widths`, and each slice that `enable_lora` names has its own product of rank r. A (n·r, in) stacks the n first factors,
    B (sum of the enabled widths, r) the second ones.

    >>> A, B = torch.ones(2 * 2, 6), torch.ones(4 + 4, 2)
    >>> update = FusedUpdate(A, B, lora_alpha=2, enable_lora=(True, False, True), widths=(4, 4, 4))
    >>> update.r, update.delta().shape
    (2, torch.Size([12, 6]))
    """

    kind: ClassVar[str] = "fused"
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

    may_be_dora: ClassVar[bool] = False

    @property
    def slices(self) -> ops.Slices:
        """The slices of the output."""
        return ops.Slices(self.widths, self.enable_lora)

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """(Σ widths, in)."""
        return (sum(self.widths), self.A.shape[1])

    def _product(self) -> Tensor:
        return ops.linear_delta(self.A, self.B, self.scaling, self.slices)

    def strips(self, layout: Layout) -> list[ops.Strip]:
        """One for each enabled slice."""
        starts = [start for start, on in zip(accumulate(self.widths, initial=0), self.enable_lora, strict=False) if on]
        placed = zip(starts, self.products(), strict=True)
        if layout.transposed:
            return [ops.Strip(0, start, A.t(), B.t()) for start, (B, A) in placed]
        return [ops.Strip(start, 0, B, A) for start, (B, A) in placed]

    def products(self) -> list[Product]:
        """One for each enabled slice."""
        return list(zip(self.B.split(self.slices.chosen), self.A.split(self.r), strict=True))

    def with_products(self, products: Sequence[Product], lora_alpha: float, use_rslora: bool) -> Self:
        """An update of the same slices, one product for each that is enabled."""
        A, B = torch.cat([A for _, A in products]), torch.cat([B for B, _ in products])
        return dataclasses.replace(self, A=A, B=B, lora_alpha=lora_alpha, use_rslora=use_rslora)

    def plain(self) -> LoRAUpdate:
        """The same ΔW as one update of rank n·r, whose B is zero wherever a slice does not see a first factor.

        >>> A, B = torch.ones(2 * 2, 6), torch.ones(4 + 4, 2)
        >>> update = FusedUpdate(A, B, lora_alpha=2, enable_lora=(True, False, True), widths=(4, 4, 4))
        >>> update.plain().r, torch.equal(update.plain().delta(), update.delta())
        (4, True)
        """
        B, n = ops.block_diagonal(self.B, self.slices), sum(self.enable_lora)
        lora_alpha = self.lora_alpha * (n**0.5 if self.use_rslora else n)
        return LoRAUpdate(self.A, B, lora_alpha, self.use_rslora)

    def like_plain(self, update: LoRAUpdate) -> "FusedUpdate | None":
        """The update of this kind, with slices like this one's, whose `plain` is `update`; None where there is none.

        >>> A, B = torch.ones(2 * 2, 6), torch.ones(4 + 4, 2)
        >>> own = FusedUpdate(A, B, lora_alpha=2, enable_lora=(True, False, True), widths=(4, 4, 4))
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

    kind: ClassVar[str] = "projection"
    may_be_dora: ClassVar[bool] = False
