"""Low-rank products P = B·A, B (k, R), A (R, n), handled without forming the k × n matrix; and the leading part of a dense one.

    B = Q₁·R₁,  Aᵀ = Q₂·R₂   →   B·A = Q₁·(R₁·R₂ᵀ)·Q₂ᵀ,   so an SVD of the R × R matrix in the middle is one of P.

A sum of products, Σ cᵢ·Bᵢ·Aᵢ, is one with B = [c₁B₁, c₂B₂ …] and A = [A₁; A₂ …], which are not put together for it.

In float64 throughout. Factors of a lower precision are orthogonalized by the eigenvectors of BᵀB, which costs a fraction of a
QR decomposition and loses half of float64's digits, no more than their own rounding did; float64's own by QR. Deterministic:
where vectors are drawn, they come from a fixed seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..tensors import without_autocast

_WHOLE = 768  # smaller side up to which a dense matrix is decomposed in full
_OVERSAMPLED, _ITERATIONS = 16, 4
_EXACT, _CAREFUL = 2048, 8  # of `dominant`: the largest smaller side with an exact answer, and the iterations of larger ones
_ROWS = 256  # of a factor that are in float64 at a time
_BLOCK = 1024  # of a weight


class SVD(NamedTuple):
    """U (k, R), S (R,) descending, Vh (R, n): P = U·diag(S)·Vh."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def leading(self, r: int | None) -> "SVD":
        """The best approximation of rank `r`; all of it where that is None."""
        return SVD(self.U[:, :r], self.S[:r], self.Vh[:r])

    def factors(self) -> tuple[Tensor, Tensor]:
        """B = U·√S and A = √S·Vh, whose product this is and whose norms are equal."""
        root = self.S.sqrt()
        return self.U * root, root[:, None] * self.Vh


class Term(NamedTuple):
    """One product of a sum: c·B·A."""

    B: Tensor
    A: Tensor
    c: float = 1.0


@without_autocast
def svd(terms: Sequence[Term], r: int | None = None) -> SVD:
    """The decomposition of Σ c·B·A, or its `r` leading components; of rank min(k, ΣR, n) at most.

    >>> B, A = torch.randn(5, 2, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    >>> U, S, Vh = svd([Term(B, A)])
    >>> S.shape, torch.allclose(U * S @ Vh, B @ A)
    (torch.Size([2]), True)
    """
    if _is_dense(terms):
        return SVD(*torch.linalg.svd(_dense(terms), full_matrices=False)).leading(r)
    left, right = _sides(terms)
    U, S, Vh = SVD(*torch.linalg.svd(left.triangle() @ right.triangle().t(), full_matrices=False)).leading(r)
    return SVD(left.basis(U), S, right.basis(Vh.t()).t())


@without_autocast
def singular_values(terms: Sequence[Term]) -> Tensor:
    """Those of Σ c·B·A, descending, in float64."""
    if _is_dense(terms):
        core = _dense(terms)
    else:
        left, right = _sides(terms)
        core = left.triangle() @ right.triangle().t()
    S: Tensor = torch.linalg.svdvals(core)
    return S


def _is_dense(terms: Sequence[Term]) -> bool:
    """Whether the products have together as much rank as there can be."""
    return sum(B.shape[1] for B, _, _ in terms) >= min(len(terms[0].B), terms[0].A.shape[1])


def _dense(terms: Sequence[Term]) -> Tensor:
    P = torch.zeros(len(terms[0].B), terms[0].A.shape[1], dtype=torch.float64, device=terms[0].B.device)
    for B, A, c in terms:
        P.addmm_(B.double(), A.double(), alpha=c)
    return P


def _sides(terms: Sequence[Term]) -> tuple["_Side", "_Side"]:
    return _Side([B for B, _, _ in terms], [c for _, _, c in terms]), _Side([A.t() for _, A, _ in terms], [1.0] * len(terms))


class _Side:
    """Y = [c₁Y₁, c₂Y₂ …] (k, R) = Q·R with Q = Y·X of orthonormal columns; neither Y nor Q is formed, but of float64."""

    def __init__(self, parts: list[Tensor], scales: list[float]):
        self.parts, self.scales = parts, scales
        self._Q: Tensor | None = None
        if any(part.dtype == torch.float64 for part in parts):
            self._Q, self._R = torch.linalg.qr(self._rows(0, len(parts[0])))
            return
        R = sum(part.shape[1] for part in parts)
        gram = torch.zeros(R, R, dtype=torch.float64, device=parts[0].device)
        for start in range(0, len(parts[0]), _ROWS):
            rows = self._rows(start, start + _ROWS)
            gram.addmm_(rows.t(), rows)
        squares, V = torch.linalg.eigh(gram)
        noise = R * torch.finfo(torch.float64).eps * squares[-1:]
        kept = (squares > noise).index_fill(0, torch.tensor(R - 1, device=gram.device), True)
        self.lengths, self.V = squares[kept].clamp_min(0).sqrt(), V[:, kept]

    def _rows(self, start: int, stop: int) -> Tensor:
        return torch.cat([part[start:stop].double() * c for part, c in zip(self.parts, self.scales, strict=True)], 1)

    def triangle(self) -> Tensor:
        """R."""
        R: Tensor = self._R if self._Q is not None else self.lengths[:, None] * self.V.t()
        return R

    def basis(self, M: Tensor) -> Tensor:
        """Q·M."""
        if self._Q is not None:
            QM: Tensor = self._Q @ M
            return QM
        XM = self.V @ (M / self.lengths.clamp_min(torch.finfo(torch.float64).tiny)[:, None])
        widths = [part.shape[1] for part in self.parts]
        result = torch.zeros(len(self.parts[0]), M.shape[1], dtype=torch.float64, device=M.device)
        for part, c, rows in zip(self.parts, self.scales, XM.split(widths), strict=True):
            result.addmm_(part.double(), rows, alpha=c)
        return result


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


@without_autocast
def leading(P: Tensor, r: int | None = None, energy: float | None = None, iterations: int = _ITERATIONS) -> SVD:
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
        found = _subspace(P, columns, iterations)
        enough = energy is None or float(found.S.double().square().sum()) >= energy * total
        if enough or columns >= limit:
            rank = limit if energy is None else min(limit, rank_for(found.S, energy, total))
            return SVD(*(part.double() for part in found.leading(min(rank, len(found.S)))))
        columns = min(limit, 2 * columns)


def _subspace(P: Tensor, columns: int, iterations: int) -> SVD:
    """The leading `columns` of the SVD of P, and some that are less exact."""
    width = columns + _OVERSAMPLED
    if min(P.shape) <= _WHOLE or 3 * width >= min(P.shape):
        return SVD(*torch.linalg.svd(P, full_matrices=False))
    generator = torch.Generator().manual_seed(0)
    Q = torch.randn(P.shape[1], width, generator=generator, dtype=P.dtype).to(P.device)
    for _ in range(iterations):
        Q = torch.linalg.qr(P.t() @ torch.linalg.qr(P @ Q)[0])[0]
    Q = torch.linalg.qr(P @ Q)[0]
    U, S, Vh = torch.linalg.svd(Q.t() @ P, full_matrices=False)
    return SVD(Q @ U, S, Vh).leading(columns)


@without_autocast
def dominant(W: Tensor, r: int) -> SVD:
    """The `r` leading components of a matrix of any precision, those that are more than rounding (10⁻⁶ of the largest).

    Up to 2048 on its smaller side by the eigenvectors of WᵀW in float64, to which W is added block by block; of larger ones by
    subspace iteration in float32, whose norm of r components is too small by less than 1 % where all singular values are alike.

    >>> dominant(torch.diag(torch.tensor([3.0, 1.0, 0.0])), 3).S
    tensor([3., 1.], dtype=torch.float64)
    """
    found = leading(W, r, iterations=_CAREFUL) if min(W.shape) > _EXACT else _by_gram(W, r)
    return found.leading(int((1e-6 * found.S[0] < found.S).sum()))


def _by_gram(W: Tensor, r: int) -> SVD:
    tall = W if len(W) >= W.shape[1] else W.t()
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=W.device)
    for rows in tall.split(_BLOCK):
        gram.addmm_(rows.double().t(), rows.double())
    squares, V = torch.linalg.eigh(gram)
    S, V = squares.flip(0)[:r].clamp_min(0).sqrt(), V.flip(1)[:, :r]
    U = torch.cat([rows.double() @ V for rows in tall.split(_BLOCK)]) / S.clamp_min(torch.finfo(torch.float64).tiny)
    return SVD(U, S, V.t()) if tall is W else SVD(V, S, U.t())
