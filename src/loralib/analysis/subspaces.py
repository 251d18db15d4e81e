"""How far two adapters changed a layer in the same directions: the similarity of subspaces (paper, section 7.2, appendix G).

    φ(i, j) = ‖Uᵢᵀ·Vⱼ‖²_F / min(i, j)   in [0, 1]

Uᵢ: the first i singular vectors of one adapter's matrix, orthonormal columns (n, i); Vⱼ: the first j of the other's. φ is 1
where the smaller subspace lies in the larger one, and 0 where the two are orthogonal. With d the projection metric,
φ = 1 − d² / p for p = min(i, j) (the paper prints (1 − d²) / p).

For random subspaces E‖Uᵢᵀ·Vⱼ‖² = i·j / n, so φ has the expectation max(i, j) / n, which is not small where j is not.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.adapter import Adapter, check_adapter
from ..adapters.sums import in_layer
from ..choices import Directions, names
from ..errors import ConfigError
from ..printing import short
from ..tensors import without_autocast
from .products import Product, paired


@dataclass(frozen=True, eq=False)
class SubspaceSimilarity:
    """How similar the leading subspaces of two updates of a layer are, for all numbers of directions i and j.

    Attributes:
        phi: φ(i, j) at phi[i - 1, j - 1], float64, up to the numerical ranks of the two.
        n: The dimension of the space that the directions are in.
        starting: The same of the values that training started from, where they were given and are not zero; NaN where they have
            fewer directions.

    Example:
        >>> found = lora.SubspaceSimilarity(torch.tensor([[1.0, 1.0]]), n=8)
        >>> found.at(1, 2), found.chance
        (1.0, tensor([[0.1250, 0.2500]], dtype=torch.float64))
    """

    phi: Tensor
    n: int
    starting: Tensor | None = None

    @property
    def chance(self) -> Tensor:
        """The expectation of φ(i, j) for random subspaces, max(i, j) / n."""
        i, j = (torch.arange(1, count + 1, dtype=torch.float64, device=self.phi.device) for count in self.phi.shape)
        return torch.maximum(i[:, None], j[None, :]) / self.n

    def at(self, i: int, j: int) -> float:
        """φ(i, j), of the first i directions of the one and the first j of the other.

        Args:
            i: From 1 to the numerical rank of the first.
            j: From 1 to the numerical rank of the second.

        Returns:
            φ.

        Raises:
            ConfigError: When there are fewer directions.
        """
        rows, columns = self.phi.shape
        if not (1 <= i <= rows and 1 <= j <= columns):
            raise ConfigError(f"φ({i}, {j}): the two updates have {rows} and {columns} directions; count from 1 to these.")
        return float(self.phi[i - 1, j - 1])


@without_autocast
def subspace_similarity(
    a: Adapter, b: Adapter, of: Directions = "right", *, starting: tuple[Adapter, Adapter] | None = None
) -> dict[str, SubspaceSimilarity]:
    """Compare the directions in which two adapters change the layers that both adapt (paper, section 7.2).

    φ(i, j) = ‖Uᵢᵀ·Vⱼ‖²_F / min(i, j), by QR of the factors and an r × r SVD in float64. Two adapters that started from the same
    factors A, as those of one seed do for different ranks, are similar in A before any training: compare different seeds, or
    give `starting`. Of DoRA its s·B·A is compared.

    Args:
        a: The first adapter.
        b: The second one.
        of: Which directions: "right", the right singular vectors of ΔW, in the space of inputs; "left", its left ones, in that
            of outputs; "A", the right singular vectors of A alone, which the paper compares between ranks.
        starting: The two adapters before training.

    Returns:
        φ by layer, `name[i]` for slice i of a fused projection.

    Raises:
        TargetError: When the adapters share no layer.
        AlgebraError: When a shared layer has two shapes, factors that are not finite or, for "A", those of a convolution of
            loralib 0.1.
        ConfigError: When `of` is something else.
        ArgumentError: When `a` or `b` is not an adapter.

    Example:
        >>> a, b = (lora.LoRAUpdate(torch.eye(8)[:r], torch.randn(6, r), lora_alpha=1) for r in (2, 4))
        >>> a, b = (lora.Adapter(lora.LoRAConfig(), {"proj": update}) for update in (a, b))
        >>> similarity = lora.subspace_similarity(a, b)["proj"]
        >>> round(similarity.at(2, 4), 6), similarity.chance[1, 3]
        (1.0, tensor(0.5000, dtype=torch.float64))
    """
    check_adapter(a, "a")
    check_adapter(b, "b")
    if of not in names(Directions):
        raise ConfigError(f"of={short(of)}: must be one of {', '.join(map(repr, names(Directions)))}.")
    before = {} if starting is None else {name: phi for name, phi, _ in _phis(*_checked(starting), of)}
    return {name: SubspaceSimilarity(phi, n, _like(phi, before.get(name))) for name, phi, n in _phis(a, b, of)}


def _checked(starting: tuple[Adapter, Adapter]) -> tuple[Adapter, Adapter]:
    """`starting`; `ConfigError` unless it is a pair of adapters."""
    if not isinstance(starting, tuple | list) or len(starting) != 2:
        raise ConfigError("starting: must be the two adapters before training, as (a, b).")
    for i, adapter in enumerate(starting):
        check_adapter(adapter, f"starting[{i}]")
    return starting[0], starting[1]


def _phis(a: Adapter, b: Adapter, of: Directions) -> Iterator[tuple[str, Tensor, int]]:
    """Names, φ, and the dimensions of the spaces."""
    for name, first, second in paired(a, b):
        with in_layer(name):
            U, V = _directions(first, of), _directions(second, of)
        yield name, _phi(U, V), len(U)


def _directions(product: Product, of: Directions) -> Tensor:
    """The singular vectors, as orthonormal columns (n, rank)."""
    if of == "A":
        return product.rows_of_a()
    U, _, Vh = product.svd()
    return U if of == "left" else Vh.t()


def _phi(U: Tensor, V: Tensor) -> Tensor:
    """φ(i, j) for all numbers of the columns of U (n, i_max) and V (n, j_max)."""
    squares = (U.t() @ V).square().cumsum(0).cumsum(1)  # ‖Uᵢᵀ·Vⱼ‖²_F
    i, j = (torch.arange(1, count + 1, device=squares.device) for count in squares.shape)
    return (squares / torch.minimum(i[:, None], j[None, :])).clamp(0, 1)


def _like(phi: Tensor, other: Tensor | None) -> Tensor | None:
    """`other` in the shape of `phi`, with NaN where it has no value; None where it has none at all."""
    if other is None or not other.numel():
        return None
    found = torch.full_like(phi, math.nan)
    rows, columns = min(len(phi), len(other)), min(phi.shape[1], other.shape[1])
    found[:rows, :columns] = other[:rows, :columns]
    return found
