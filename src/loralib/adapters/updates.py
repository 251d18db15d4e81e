"""The low-rank update of one layer as a value, one class for each form that the factors come in.

    ΔW = s·B·A

    LoRAUpdate               A (r, *)          B (k, r, 1…)      linear layers, convolutions, bilinear layers
    EmbeddingUpdate          A (r, V)          B (k, r)          ΔW = s·(B·A)ᵀ, the layout of an embedding's weight (V, k)
    ConvolutionUpdate        A (r, d/g, *)     B (k, r, 1…)      g groups share A
    LegacyConvolutionUpdate  A (r·κ, d·κ)      B (k/g·κ, r·κ)    loralib 0.1's form, for a square kernel κ
    FusedUpdate              A (n·r, d)        B (Σ widths, r)   n slices of a fused projection, a product each
    ProjectionUpdate         A (r, d)          B (k, r)          of torch's nn.MultiheadAttention
    ExpertsUpdate            A (E, r, d)       B (E, k, r)       E experts, a product each; 1 in place of E where they share it

Those of convolutions are in `convolution_updates`, that of embeddings in `embedding_update`, that of fused projections in
`fused_update`, that of experts in `experts_update`.

d in, k out, r rank, V vocabulary, g groups; `*` is the kernel. `effective_weight` is the one formula of what an update does to
a weight: layers merge with it, and so do models in files. A `Layout` says how the weight is stored; without one it is
(k, d / g, *), and (V, k) for an embedding.

With `magnitude` m (k,) an update is DoRA's (2402.09353): W' = m·(W + s·B·A) / ‖W + s·B·A‖, the norm over all that goes into an
output. What it adds depends on W, so it has an `effective_weight` and no `delta`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .. import ops
from ..arguments import check_tensor
from ..config import in_python, lora_scaling
from ..errors import AlgebraError, ConfigError
from ..tensors import without_autocast
from .comparing import Comparable, own_field_names
from .layout import Layout

Product = tuple[Tensor, Tensor]

_TENSORS = {"lora_A": "A", "lora_B": "B", "lora_magnitude": "magnitude"}  # the names in files, and the fields


@dataclass(frozen=True, eq=False)
class LoRAUpdate(Comparable):
    """The update of one layer: ΔW = s·B·A with A (r, in), B (out, r) and s = lora_alpha / r (paper, equation 3).

    A convolution's A is (r, in, *kernel) and its B (out, r, 1…); a bilinear layer's A is (r, in1, in2). Two updates are equal
    when their kind, their fields and every bit of their tensors are.

    Args:
        A: The first factor, (r, in).
        B: The second factor, (out, r).
        lora_alpha: The numerator of the scaling.
        use_rslora: Scale by lora_alpha / √r (rsLoRA, 2312.03732).
        magnitude: Of a DoRA update (2402.09353), (out,).

    Raises:
        ConfigError: When the two factors do not share one rank, or `magnitude` does not fit.
        ArgumentError: When a factor is not a tensor.

    Example:
        >>> update = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)
        >>> update.r, update.scaling, update.delta().shape
        (2, 2.0, torch.Size([5, 3]))
    """

    A: Tensor
    B: Tensor
    lora_alpha: float
    use_rslora: bool = False
    magnitude: Tensor | None = dataclasses.field(default=None, kw_only=True)
    kind: ClassVar[str] = "linear"
    may_be_dora: ClassVar[bool] = True
    usual_layout: ClassVar[Layout] = Layout()  # of a weight of which nothing else is known

    def __post_init__(self) -> None:
        if not torch.compiler.is_compiling():  # numbers are Python's own there
            self._take_numbers_in_python()
        if problem := self._problem():
            raise ConfigError(
                f"lora_A {tuple(self.A.shape)} and lora_B {tuple(self.B.shape)} are not factors of one update: {problem}."
            )
        if self.magnitude is not None and (self.magnitude.shape != (len(self.B),) or not self.may_be_dora):
            raise ConfigError(
                f"magnitude {tuple(self.magnitude.shape)} of a {type(self).__name__} with lora_B {tuple(self.B.shape)}: "
                "expected one number an output, for a linear layer, an embedding or a convolution."
            )

    def _take_numbers_in_python(self) -> None:
        for what, factor in (("A", self.A), ("B", self.B)):
            check_tensor(factor, what)
        kind: Any = type(self)
        for name in ("lora_alpha", "use_rslora", *own_field_names(kind)):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and (found := in_python(value)) is not value:
                object.__setattr__(self, name, found)

    def _problem(self) -> str | None:
        A, B = self.A, self.B
        if A.dim() >= 2 and B.dim() >= 2 and B.shape[2:].numel() == 1 and 0 < len(A) == B.shape[1]:
            return None
        return "expected (r, in) and (out, r) with the same r > 0"

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make up the update.

        Returns:
            A dictionary with the names in files, `lora_A`, `lora_B` and, of DoRA, `lora_magnitude`.
        """
        held = {name: getattr(self, field) for name, field in _TENSORS.items()}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Replace tensors.

        Args:
            tensors: The new ones, named as by `tensors()`.

        Returns:
            The same update with these; those that are left out stay.
        """
        fields: dict[str, Any] = {_TENSORS[name]: tensor for name, tensor in tensors.items()}
        return dataclasses.replace(self, **fields)

    @property
    def is_dora(self) -> bool:
        """Whether the update is DoRA's, with magnitudes."""
        return self.magnitude is not None

    @property
    def r(self) -> int:
        """The rank."""
        return self.A.shape[0]

    @property
    def scaling(self) -> float:
        """The factor s: lora_alpha / r, or lora_alpha / √r with `use_rslora`."""
        return lora_scaling(self.r, self.lora_alpha, self.use_rslora)

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """The shape of the weight that the update is for, in the canonical layout: (out, in / groups, *kernel)."""
        return (len(self.B), *self.A.shape[1:])

    # --- what it does to a weight -----------------------------------------------------------------------------------

    @without_autocast
    def delta(self, layout: Layout | None = None) -> Tensor:
        """ΔW, computed in at least float32.

        Args:
            layout: How the weight is stored. Default: (out, in / groups, *kernel), and (V, k) for an embedding.

        Returns:
            ΔW in the weight's shape.

        Raises:
            AlgebraError: For DoRA, whose effect depends on the weight.
        """
        if self.magnitude is not None:
            raise AlgebraError(
                "What a DoRA update adds depends on the weight W; ask for effective_weight(W) instead of delta()."
            )
        return (layout or self.usual_layout).from_canonical(self._product())

    def _product(self) -> Tensor:
        """s·B·A in the canonical layout."""
        return ops.linear_delta(self.A, self.B, self.scaling)

    @without_autocast
    def effective_weight(self, W: Tensor, layout: Layout | None = None) -> Tensor:
        """W' for a stored weight W: computed in at least float32, rounded once to the dtype of W, and differentiable.

        Args:
            W: The layer's weight; of a packed tensor, its own rows.
            layout: How `W` is stored. Default: (out, in / groups, *kernel), and (V, k) for an embedding.

        Returns:
            W + ΔW in the shape and dtype of `W`, and for DoRA m·(W + ΔW) / ‖W + ΔW‖ (2402.09353, equation 5).

        Example:
            >>> update = lora.LoRAUpdate(torch.zeros(1, 2), torch.zeros(2, 1), lora_alpha=1, magnitude=torch.tensor([10.0, 1]))
            >>> update.effective_weight(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
            tensor([[6., 8.],
                    [0., 1.]])
        """
        layout, W = layout or self.usual_layout, self.as_used(W)
        if not W.numel():
            return W.clone()
        if (strips := self.strips(layout)) is not None:
            return ops.add_strips(self.as_matrix(W), strips, self.scaling).view(W.shape)
        wide = torch.promote_types(torch.promote_types(W.dtype, torch.float32), self.A.dtype)
        canonical = layout.to_canonical(W).to(wide)
        strip = ops.Strip(0, 0, self.B.flatten(1), self.A.flatten(1))
        changed = ops.add_strips(canonical.flatten(1), [strip], self.scaling).view(canonical.shape)
        if self.magnitude is not None:
            norm = torch.linalg.vector_norm(changed.flatten(1), dim=1).clamp_min(torch.finfo(changed.dtype).tiny)
            changed = changed * (self.magnitude.to(changed) / norm).view(-1, *[1] * (changed.dim() - 1))
        return layout.from_canonical(changed).to(W.dtype)

    def strips(self, layout: Layout) -> list[ops.Strip] | None:
        """The products that make up ΔW / s, as blocks of the stored weight seen as a matrix.

        Args:
            layout: How the weight is stored.

        Returns:
            The blocks; None where there are none (DoRA, transposed convolutions).
        """
        if self.magnitude is not None or layout.deconvolution:
            return None
        B, A = self.B.flatten(1), self.A.flatten(1)
        return [ops.Strip(0, 0, A.t(), B.t()) if layout.transposed else ops.Strip(0, 0, B, A)]

    def as_matrix(self, W: Tensor) -> Tensor:
        """Rows of the stored weight as the matrix to which `strips` are added.

        Args:
            W: Rows of the weight.

        Returns:
            As many rows, flat; of experts the rows of each, one below the other.
        """
        return W.reshape(len(W), -1)

    def as_used(self, W: Tensor) -> Tensor:
        """Rows of the stored weight as the base layer uses them, each row by itself.

        Args:
            W: Rows of the weight.

        Returns:
            `W`, but for embeddings with `max_norm`.
        """
        return W

    # --- its products -----------------------------------------------------------------------------------------------

    def products(self) -> list[Product]:
        """What ΔW / s is made of.

        Returns:
            Pairs of matrices B (k, R), A (R, n) whose products, rearranged, fill it without overlap.
        """
        return [(self.B.flatten(1), self.A.flatten(1))]

    def with_products(self, products: Sequence[Product], lora_alpha: float, use_rslora: bool) -> Self:
        """Replace the products.

        Args:
            products: As `products()` gives them, all of one rank.
            lora_alpha: The new numerator of the scaling.
            use_rslora: Whether to scale by lora_alpha / √r.

        Returns:
            An update of the same kind and structure.
        """
        ((B, A),) = products
        A, B = A.unflatten(1, self.A.shape[1:]), B.reshape(*B.shape, *self.B.shape[2:])
        return dataclasses.replace(self, A=A, B=B, lora_alpha=lora_alpha, use_rslora=use_rslora)

    @property
    def rows_per_rank(self) -> int:
        """How many columns of B in `products` one rank stands for."""
        return 1

    def plain(self) -> "LoRAUpdate":
        """The same ΔW in the form that most formats know.

        Returns:
            The update itself, but for slices and 0.1's convolutions.
        """
        return self


@dataclass(frozen=True, eq=False)
class ProjectionUpdate(LoRAUpdate):
    """The update of one projection of an `nn.MultiheadAttention`: its `q_proj`, `k_proj`, `v_proj` or `out_proj`.

    Args:
        A: (r, in).
        B: (embed_dim, r).
        lora_alpha: The numerator of the scaling.
        use_rslora: Scale by lora_alpha / √r.
        magnitude: Not supported: None.

    Example:
        >>> model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2, target_modules=["q_proj"]))
        >>> lora.extract(model).layers["attention.q_proj"].kind
        'projection'
    """

    kind: ClassVar[str] = "projection"
    may_be_dora: ClassVar[bool] = False
