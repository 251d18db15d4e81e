"""The products s·B·A that an adapter is made of, by name, and their decompositions in float64.

One for each layer, and one for each enabled slice of a fused projection: slice i of `name` is `name[i]`. As matrices (out, n):

    linear layers      n = in                   convolutions      n = in / groups · kernel
    embeddings         n = num_embeddings       bilinear layers   n = in1 · in2

Factors of a convolution in loralib 0.1's form are replaced by those of its `plain` form; of a transposed one they are
multiplied, and the matrix is (out / groups, in · kernel).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..adapters import low_rank
from ..adapters.adapter import Adapter
from ..adapters.algebra import check_computable
from ..adapters.convolution_updates import LegacyConvolutionUpdate, LegacyTransposedUpdate
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.fused_update import FusedUpdate
from ..adapters.soundness import empty
from ..adapters.sums import in_layer
from ..adapters.updates import LoRAUpdate
from ..errors import AlgebraError, TargetError
from ..patterns import nearest
from ..tensors import without_autocast

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Product:
    """scaling·B·A, B (k, R), A (R, n). start: the first row of the layer's weight that it is for. own: whether these are the
    layer's own factors."""

    B: Tensor
    A: Tensor
    scaling: float
    start: int = 0
    own: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(k, n)."""
        return len(self.B), self.A.shape[1]

    @without_autocast
    def svd(self) -> low_rank.SVD:
        """The decomposition in float64, up to the numerical rank: values that are only rounding are left out."""
        term = self._term()
        found = low_rank.svd([term])
        size = abs(self.scaling) * float(torch.linalg.vector_norm(term.B) * torch.linalg.vector_norm(term.A))
        noise = _EPS * max(max(self.shape) * float(found.S[0]), len(term.A) * size)
        return found.leading(int((noise < found.S).sum()))

    @without_autocast
    def values(self) -> Tensor:
        """The singular values in float64, all of them."""
        return low_rank.singular_values([self._term()])

    @without_autocast
    def rows_of_a(self) -> Tensor:
        """The right singular vectors of A alone, (n, rank); `AlgebraError` where the layer's A is not a matrix (R, n)."""
        if not self.own:
            raise AlgebraError("loralib 0.1's factors of a convolution do not factor its matrix; compare ΔW instead of A.")
        _, S, Vh = torch.linalg.svd(self._term().A, full_matrices=False)
        rank: int = int((max(self.A.shape) * _EPS * S[0] < S).sum())
        rows: Tensor = Vh[:rank]
        return rows.t()

    def _term(self) -> low_rank.Term:
        """The factors in float64, where they are decomposed by QR."""
        return low_rank.Term(self.B.detach().cpu().double(), self.A.detach().cpu().double(), self.scaling)


def products_of(name: str, update: LoRAUpdate, apart: bool = True) -> dict[str, Product]:
    """The products of one layer by name; `AlgebraError` for factors without values that can be computed with.

    apart: the slices of a fused projection one by one, not as the one matrix that they make up. Experts are always apart.

    >>> update = FusedUpdate(torch.ones(4, 6), torch.ones(8, 2), 2, enable_lora=(True, False, True), widths=(4, 4, 4))
    >>> [(name, product.start) for name, product in products_of("qkv", update).items()]
    [('qkv[0]', 0), ('qkv[2]', 8)]
    """
    with in_layer(name):
        if update.A.is_meta or update.B.is_meta:
            raise AlgebraError("its factors are on the meta device, where they have no values; load the adapter first.")
        if problem := empty(update):
            raise AlgebraError(f"{problem}.")
        check_computable(update)
        if isinstance(update, FusedUpdate) and apart:
            return _slices(name, update)
        if isinstance(update, ExpertsUpdate):
            return _experts(name, update)
        if isinstance(update, LegacyTransposedUpdate):
            return {name: _multiplied(update)}
        plain = update.plain()
        ((B, A),) = plain.products()
        return {name: Product(B, A, plain.scaling, own=not isinstance(update, LegacyConvolutionUpdate))}


def _slices(name: str, update: FusedUpdate) -> dict[str, Product]:
    starts = [
        (i, start)
        for i, (start, on) in enumerate(zip(accumulate(update.widths, initial=0), update.enable_lora, strict=False))
        if on
    ]
    return {
        f"{name}[{i}]": Product(B, A, update.scaling, start)
        for (i, start), (B, A) in zip(starts, update.products(), strict=True)
    }


def _experts(name: str, update: ExpertsUpdate) -> dict[str, Product]:
    k = update.B.shape[1]
    return {f"{name}.{e}": Product(B, A, update.scaling, e * k) for e, (B, A) in enumerate(update.products())}


def _multiplied(update: LegacyTransposedUpdate) -> Product:
    """The matrix of a transposed convolution in 0.1's form, which has no low rank, times the identity."""
    P = (update.B.detach().double() @ update.A.detach().double()).reshape(update.weight_shape).transpose(0, 1).flatten(1)
    return Product(P, torch.eye(P.shape[1], dtype=P.dtype, device=P.device), update.scaling, own=False)


def weight_matrix(update: LoRAUpdate, W: Tensor) -> Tensor:
    """A layer's weight in the canonical layout as the matrix (out, n) whose rows its products are for."""
    if isinstance(update, ExpertsUpdate):
        return W.flatten(0, 1)
    return (W.transpose(0, 1) if isinstance(update, LegacyTransposedUpdate) else W).flatten(1)


def products(adapter: Adapter) -> dict[str, Product]:
    """The products of all layers; `AlgebraError`, by layer, for those that cannot be computed with."""
    return {key: product for name, update in adapter.layers.items() for key, product in products_of(name, update).items()}


def paired(a: Adapter, b: Adapter) -> Iterator[tuple[str, Product, Product]]:
    """The products that two adapters have of the same matrices, by name.

    Raises `TargetError` where they share no layer, `AlgebraError` for a shared layer of two shapes, or that cannot be computed
    with. A layer that only one of them holds in slices is compared as one matrix.
    """
    names = _shared(a, b)
    for name in names:
        first, second = a.layers[name], b.layers[name]
        if first.canonical_shape != second.canonical_shape:
            shapes = f"{first.canonical_shape} and {second.canonical_shape}"
            raise AlgebraError(f"{name}: the two updates are for weights of different shapes, {shapes}.")
        yield from _paired(name, first, second)


def _paired(name: str, first: LoRAUpdate, second: LoRAUpdate) -> Iterator[tuple[str, Product, Product]]:
    apart = isinstance(first, FusedUpdate) and isinstance(second, FusedUpdate) and first.widths == second.widths
    found, others = products_of(name, first, apart), products_of(name, second, apart)
    yield from ((key, product, others[key]) for key, product in found.items() if key in others)


def _shared(a: Adapter, b: Adapter) -> list[str]:
    if names := [name for name in a.layers if name in b.layers and _in_common(a.layers[name], b.layers[name])]:
        return names
    if not a.layers or not b.layers:
        raise TargetError(
            f"{'The first' if not a.layers else 'The second'} adapter adapts no layer; there is nothing to compare."
        )
    name = next(iter(a.layers))
    if both := [name for name in a.layers if name in b.layers]:
        raise TargetError(f"The two adapters share no slice of a layer: of {both[0]} each adapts other slices.")
    raise TargetError(
        f"The two adapters share no layer: the second adapts none of the {len(a.layers)} of the first, such as {name}. "
        f"Nearest names there: {nearest(name, b.layers)}",
        "if they are the same layers, rename those of one with Adapter.rename",
        option="if they are the same layers, rename those of one with: loralib convert --rename",
    )


def _in_common(first: LoRAUpdate, second: LoRAUpdate) -> bool:
    """Whether the updates of one layer have a part of it in common."""
    if not (isinstance(first, FusedUpdate) and isinstance(second, FusedUpdate) and first.widths == second.widths):
        return True
    return any(one and other for one, other in zip(first.enable_lora, second.enable_lora, strict=True))


def norms(products: Mapping[str, Product]) -> dict[str, float]:
    """‖ΔW‖_F by name."""
    return {name: float(torch.linalg.vector_norm(product.values())) for name, product in products.items()}
