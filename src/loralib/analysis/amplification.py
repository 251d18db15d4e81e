"""How ΔW relates to the weight W that it is added to (paper, section 7.3, table 7, and appendix H).

    ‖Uᵀ·W·V‖_F   with U (out, r), V (n, r) the first r singular vectors of ΔW, of W, or random ones
    ‖ΔW‖_F / ‖Uᵀ·W·V‖_F   with those of ΔW: by how much the update amplifies directions that W has, but does not emphasise

For W's own directions it is the norm of W's r largest singular values; for random ones the root of its expected square,
‖W‖_F · r / √(out·n), for which nothing is drawn. ΔW is never formed; W is read in blocks of rows, and decomposed one layer at a
time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapters import low_rank
from ..adapters.adapter import Adapter, check_adapter
from ..checkpoints.base_weights import Source, pairs
from ..config import check_rank
from ..errors import AlgebraError, LayerError
from ..tensors import kind, without_autocast
from .products import Product, products_of, weight_matrix

SHARES = (0.01, 0.05, 0.1)  # of W's directions, largest first
_ROWS = 1024  # of W that are in float64 at a time


@dataclass(frozen=True)
class Amplification:
    """How the update of a layer relates to its weight W: a row of the paper's table 7, and the overlap of appendix H.

    Attributes:
        r: How many directions of each: at most the numerical rank of ΔW, 0 where ΔW is zero.
        by_update: ‖Uᵀ·W·V‖_F with the first r singular vectors of ΔW.
        by_weight: The same with those of W, the most there can be.
        by_random: The same with random ones: the root of its expected square.
        weight_norm: ‖W‖_F.
        update_norm: ‖ΔW‖_F.
        overlap: By a share of W's min(out, n) directions, those of its largest singular values, the share of ‖ΔW‖²_F in them:
            the mean of that in the left singular vectors (outputs) and that in the right ones (inputs).
        chance: What `overlap` would be of an update in random directions.

    Example:
        >>> found = lora.Amplification(
        ...     r=4, by_update=0.32, by_weight=21.67, by_random=0.02, weight_norm=61.95, update_norm=6.91, overlap={}
        ... )
        >>> round(found.factor, 1)
        21.6
    """

    r: int
    by_update: float
    by_weight: float
    by_random: float
    weight_norm: float
    update_norm: float
    overlap: Mapping[float, float]
    chance: Mapping[float, float] = field(default_factory=dict)

    @property
    def factor(self) -> float:
        """The amplification ‖ΔW‖_F / ‖Uᵀ·W·V‖_F: infinite where W has nothing in ΔW's directions, NaN where ΔW is zero."""
        if not self.update_norm:
            return math.nan
        return self.update_norm / self.by_update if self.by_update else math.inf


@without_autocast
def amplification(adapter: Adapter, base: Source, r: int | None = None) -> dict[str, Amplification]:
    """Measure by how much each update amplifies directions of the weight it is added to (paper, section 7.3).

    The directions of ΔW come from its factors, exactly. Those of W are exact for weights of at most 2048 inputs or outputs. Of
    larger ones the leading tenth is found by subspace iteration from a fixed seed (Halko, Martinsson and Tropp 2011, algorithm
    4.4), in a quarter of the time: `by_weight` is too small by less than 1 % (by 0.03 % for r = 64 and 4096 × 4096 random
    numbers, the worst case), and `overlap` is off by less than 0.01, unless ΔW lies in the last directions of the tenth.

    Args:
        adapter: The adapter.
        base: The model that it was trained on, or the folder or file of its weights.
        r: How many directions to compare. Default: the rank of each layer.

    Returns:
        The figures by layer, `name[i]` for slice i of a fused projection.

    Raises:
        AlgebraError: For DoRA layers, and where an update or a weight is not finite.
        LayerError: When the model does not have the adapter's layers, or their weights cannot be read.
        FormatError: When the files do not have them.
        ConfigError: When `r` is not a rank.
        ArgumentError: When `adapter` is not an adapter, or `base` neither a model nor a path.

    Example:
        >>> base = nn.Sequential(nn.Linear(4, 4, bias=False))
        >>> base[0].weight.data = torch.diag(torch.tensor([4.0, 3, 2, 1]))
        >>> update = lora.LoRAUpdate(torch.eye(4)[3:], 6 * torch.eye(4)[:, 3:], lora_alpha=1)  # along what W has least of
        >>> found = lora.amplification(lora.Adapter(lora.LoRAConfig(r=1), {"0": update}), base)["0"]
        >>> round(found.by_update, 6), round(found.by_weight, 6), round(found.factor, 6)
        (1.0, 4.0, 6.0)
    """
    check_adapter(adapter)
    r = r if r is None else check_rank(r)
    if dora := [name for name, update in adapter.layers.items() if update.is_dora]:
        raise AlgebraError(f"{dora[0]}: a DoRA update scales all of W, so by how much it amplifies a direction is not defined.")
    found = {}
    for name, update, stored in pairs(adapter, base):
        if kind(stored) != "plain":
            raise LayerError(
                f"{name}: its weight is {kind(stored)}; give a base whose weights are in memory or in files as plain tensors."
            )
        W = weight_matrix(update, stored)
        for key, product in products_of(name, update).items():
            found[key] = _of_product(key, product, W[product.start : product.start + len(product.B)], r or update.r)
    return found


def _of_product(name: str, product: Product, W: Tensor, r: int) -> Amplification:
    W = W.cpu() if W.device.type == "mps" else W  # which has no float64
    U, S, Vh = product.svd()
    r = min(r, len(S))
    weight_norm = _norm(W)
    if not math.isfinite(weight_norm):
        raise AlgebraError(f"{name}: the base's weight holds numbers that are not finite.")
    m, size = min(W.shape), math.prod(W.shape)
    counts = {share: max(1, round(share * m)) for share in SHARES}
    X, T, Yh = low_rank.dominant(W, max(r, *counts.values())) if len(S) and weight_norm else _nothing(W)
    return Amplification(
        r=r,
        by_update=_within(W, U[:, :r], Vh[:r].t()),
        by_weight=float(torch.linalg.vector_norm(T[:r])),
        by_random=weight_norm * r / math.sqrt(size),
        weight_norm=weight_norm,
        update_norm=float(torch.linalg.vector_norm(S)),
        overlap={share: _overlap(U * S, S[:, None] * Vh, X[:, :k], Yh[:k]) for share, k in counts.items()},
        chance={share: (k / W.shape[0] + k / W.shape[1]) / 2 for share, k in counts.items()},
    )


def _nothing(W: Tensor) -> low_rank.SVD:
    """The decomposition of no directions at all."""
    X, T, Yh = (W.new_zeros(shape, dtype=torch.float64) for shape in ((len(W), 0), (0,), (0, W.shape[1])))
    return low_rank.SVD(X, T, Yh)


def _norm(W: Tensor) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(rows.double())) for rows in W.split(_ROWS)))


def _within(W: Tensor, U: Tensor, V: Tensor) -> float:
    """‖Uᵀ·W·V‖_F."""
    U, V = U.to(W.device), V.to(W.device)
    blocks = zip(U.split(_ROWS), W.split(_ROWS), strict=True)
    core = sum((u.t() @ (rows.double() @ V) for u, rows in blocks), V.new_zeros(U.shape[1], V.shape[1]))
    return float(torch.linalg.vector_norm(core))


def _overlap(US: Tensor, SVh: Tensor, X: Tensor, Yh: Tensor) -> float:
    """The mean of ‖Xᵀ·ΔW‖² / ‖ΔW‖² and ‖ΔW·Y‖² / ‖ΔW‖²; 0 of an update that is zero."""
    total = float(US.square().sum())
    if not total:
        return 0.0
    left, right = X.t() @ US.to(X.device), SVh.to(Yh.device) @ Yh.t()
    return float(left.square().sum() + right.square().sum()) / (2 * total)
