"""Low-rank products P = B·A, B (k, R), A (R, n), handled without forming the k × n matrix; and the leading part of a dense one.

    B = Q₁·R₁,  Aᵀ = Q₂·R₂   →   B·A = Q₁·(R₁·R₂ᵀ)·Q₂ᵀ,   so an SVD of the R × R matrix in the middle is one of P.

In float64 throughout. Factors of a lower precision are orthogonalized by the eigenvectors of BᵀB, which costs a fraction of a
QR decomposition and loses half of float64's digits, no more than their own rounding did; float64's own by QR. Deterministic:
where vectors are drawn, they come from a fixed seed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_WHOLE = 768  # smaller side up to which a dense matrix is decomposed in full
_OVERSAMPLED, _ITERATIONS = 16, 4


class SVD(NamedTuple):
    """U (k, R), S (R,) descending, Vh (R, n): P = U·diag(S)·Vh."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def leading(self, r: int) -> "SVD":
        """The best approximation of rank `r`."""
        return SVD(self.U[:, :r], self.S[:r], self.Vh[:r])

    def factors(self) -> tuple[Tensor, Tensor]:
        """B = U·√S and A = √S·Vh, whose product this is and whose norms are equal."""
        root = self.S.sqrt()
        return self.U * root, root[:, None] * self.Vh


def svd(B: Tensor, A: Tensor, r: int | None = None) -> SVD:
    """The decomposition of B·A, or its `r` leading components; of rank min(k, R, n) at most.

    >>> B, A = torch.randn(5, 2, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    >>> U, S, Vh = svd(B, A)
    >>> S.shape, torch.allclose(U * S @ Vh, B @ A)
    (torch.Size([2]), True)
    """
    if B.shape[1] >= min(B.shape[0], A.shape[1]):
        return SVD(*torch.linalg.svd(B.double() @ A.double(), full_matrices=False)).leading(B.shape[1] if r is None else r)
    left, right = _orthogonalized(B), _orthogonalized(A.t())
    U, S, Vh = SVD(*torch.linalg.svd(left.R @ right.R.t(), full_matrices=False)).leading(B.shape[1] if r is None else r)
    return SVD(left.Y @ (left.X @ U), S, (Vh @ right.X.t()) @ right.Y.t())


def singular_values(B: Tensor, A: Tensor) -> Tensor:
    """Those of B·A, descending, in float64."""
    if B.shape[1] >= min(B.shape[0], A.shape[1]):
        core = B.double() @ A.double()
    else:
        core = _orthogonalized(B).R @ _orthogonalized(A.t()).R.t()
    S: Tensor = torch.linalg.svdvals(core)
    return S


class _Orthogonalized(NamedTuple):
    """Y (k, R) = Q·R with Q = Y·X of orthonormal columns, which is not formed."""

    Y: Tensor
    X: Tensor
    R: Tensor


def _orthogonalized(Y: Tensor) -> _Orthogonalized:
    if Y.dtype == torch.float64:
        Q, R = torch.linalg.qr(Y)
        return _Orthogonalized(Q, torch.eye(len(R), dtype=R.dtype, device=R.device), R)
    Y = Y.double()
    squares, V = torch.linalg.eigh(Y.t() @ Y)
    noise = len(squares) * torch.finfo(torch.float64).eps * squares[-1:]
    kept = (squares > noise).index_fill(0, torch.tensor(len(squares) - 1, device=Y.device), True)
    lengths, V = squares[kept].clamp_min(0).sqrt(), V[:, kept]
    return _Orthogonalized(Y, V / lengths.clamp_min(torch.finfo(torch.float64).tiny), lengths[:, None] * V.t())


def rank_for(S: Tensor, energy: float, total: float | None = None) -> int:
    """The smallest rank whose singular values carry the share `energy` of the squared norm `total` (default: of all in S); at
    least 1, and at most how many there are.

    >>> rank_for(torch.tensor([3.0, 4.0, 0.0]).sort(descending=True).values, 0.64)
    1
    """
    carried = S.double().square().cumsum(0)
    goal = energy * (float(carried[-1]) if total is None else total)
    enough = carried >= goal * (1 - 1e-12)
    return int(enough.int().argmax()) + 1 if bool(enough.any()) else len(S)


def leading(P: Tensor, r: int | None = None, energy: float | None = None) -> SVD:
    """The leading part of a dense matrix P: of rank `r`, or of the smallest rank that carries the share `energy` of its squared
    norm, or, with both, of the smaller of the two.

    Matrices of more than 768 on their smaller side are decomposed by subspace iteration (Halko, Martinsson and Tropp 2011,
    algorithm 4.4), with as many columns as the answer needs: exact up to rounding where P has the rank asked for, and close to
    the best approximation elsewhere.
    """
    P = P.double() if min(P.shape) <= _WHOLE else P.float()
    total = float(P.double().square().sum()) if P.dtype == torch.float32 else float(P.square().sum())
    limit = min(P.shape) if r is None else min(r, *P.shape)
    columns = limit if energy is None else min(limit, 32)
    while True:
        found = _subspace(P, columns)
        enough = energy is None or float(found.S.double().square().sum()) >= energy * total
        if enough or columns >= limit:
            rank = limit if energy is None else min(limit, rank_for(found.S, energy, total))
            return SVD(*(part.double() for part in found.leading(min(rank, len(found.S)))))
        columns = min(limit, 2 * columns)


def _subspace(P: Tensor, columns: int) -> SVD:
    """The leading `columns` of the SVD of P, and some that are less exact."""
    width = columns + _OVERSAMPLED
    if min(P.shape) <= _WHOLE or 3 * width >= min(P.shape):
        return SVD(*torch.linalg.svd(P, full_matrices=False))
    generator = torch.Generator().manual_seed(0)
    Q = torch.randn(P.shape[1], width, generator=generator, dtype=P.dtype).to(P.device)
    for _ in range(_ITERATIONS):
        Q = torch.linalg.qr(P.t() @ torch.linalg.qr(P @ Q)[0])[0]
    Q = torch.linalg.qr(P @ Q)[0]
    U, S, Vh = torch.linalg.svd(Q.t() @ P, full_matrices=False)
    return SVD(Q @ U, S, Vh).leading(columns)
