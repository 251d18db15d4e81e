"""Arithmetic on the updates of one layer. All of it acts on the product ΔW, never on the factors one by one.

    c·ΔW                       the scaling, and the sign of B
    w₁·ΔW₁ + w₂·ΔW₂            exact, by putting the products side by side: B = [w₁s₁B₁, w₂s₂B₂], A = [A₁; A₂], rank r₁ + r₂
    the closest ΔW of rank r   by an SVD of the product that never forms it (see `ops.products`)

DoRA's updates are no such products: they are given back as they are, or refused.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import starmap

import torch
from torch import Tensor

from ..config import alpha_for, check_rank
from ..errors import AlgebraError
from ..tensors import without_autocast
from . import low_rank
from .soundness import not_finite, out_of_range
from .updates import LoRAUpdate, Product

Weighted = tuple[LoRAUpdate, float]

_LOW_PRECISION = (torch.bfloat16, torch.float16)


def scaled(update: LoRAUpdate, c: float) -> LoRAUpdate:
    """c·ΔW, for a c of any sign; the update itself for c = 1. `AlgebraError` for DoRA and for a c that is not finite.

    >>> update = LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)
    >>> scaled(update, -0.5).delta()[0]
    tensor([-2., -2., -2.])
    """
    if not math.isfinite(c):
        raise AlgebraError(f"An update cannot be multiplied with {c}; give a finite number.")
    if c == 1:
        return update
    if update.is_dora:
        raise AlgebraError(f"A DoRA update times {c} is none: what it adds is not proportional to anything in it.")
    B = update.B if c > 0 else -update.B if c < 0 else torch.zeros_like(update.B)
    return dataclasses.replace(update, B=B, lora_alpha=update.lora_alpha * (abs(c) or 1))


@without_autocast
def added(terms: Sequence[Weighted]) -> LoRAUpdate:
    """Σ weight·ΔW of updates of one layer, exactly: the ranks add up. A single term is `scaled`.

    The dtype is that of the factors, or float32 where a product with a scaling would be rounded in a lower one.
    Raises `AlgebraError` for DoRA, and for updates of different shapes or kinds of layer.

    >>> a, b = (LoRAUpdate(torch.ones(r, 3), torch.ones(5, r), lora_alpha=4) for r in (1, 2))
    >>> total = added([(a, 1), (b, -0.5)])
    >>> total.r, total.delta()[0]
    (3, tensor([2., 2., 2.]))
    """
    terms = _addable(terms)
    if len(terms) == 1:
        return scaled(*terms[0])
    first = terms[0][0]
    common = _common_scaling(terms)
    dtype = _wide_enough([(update, weight * update.scaling / common) for update, weight in terms])
    stacked = []
    for parts in _parts(terms):
        B = torch.cat([B.to(dtype) * (c / common) for B, _, c in parts], dim=1)
        stacked.append((B, torch.cat([A.to(dtype) for _, A, _ in parts])))
    r = stacked[0][0].shape[1] // first.rows_per_rank
    use_rslora = all(update.use_rslora for update, _ in terms)
    return first.with_products(stacked, alpha_for(common, r, use_rslora), use_rslora)


def alike(terms: Sequence[Weighted]) -> list[Weighted]:
    """`terms` in one form; `AlgebraError` where there is none."""
    if len({update.structure() for update, _ in terms}) > 1:
        terms = [(update.plain(), weight) for update, weight in terms]
    if len({update.structure() for update, _ in terms}) > 1:
        raise AlgebraError(f"updates of different layers cannot be added: {' and '.join(starmap(_described, terms))}")
    return list(terms)


def _addable(terms: Sequence[Weighted]) -> list[Weighted]:
    """`terms` in one form, without those of weight 0 where others are left; `AlgebraError` for DoRA among several."""
    terms = [term for term in terms if term[1]] or list(terms[:1])
    if len(terms) > 1 and any(update.is_dora for update, _ in terms):
        raise AlgebraError(
            "DoRA updates cannot be added: what each adds depends on the weight. Merge one into the model first."
        )
    return alike(terms)


def _common_scaling(terms: Sequence[Weighted]) -> float:
    """The scaling of a sum: that of the first term, with which its factors stay as they are."""
    update, weight = terms[0]
    return abs(weight * update.scaling) or update.scaling


def _parts(terms: Sequence[Weighted]) -> list[list[low_rank.Term]]:
    """The products of the updates, weights and scalings included, by the part of ΔW that they belong to."""
    parts = zip(*(update.products() for update, _ in terms), strict=True)
    factors = [weight * update.scaling for update, weight in terms]
    return [[low_rank.Term(B, A, c) for (B, A), c in zip(pairs, factors, strict=True)] for pairs in parts]


def _described(update: LoRAUpdate, _: float) -> str:
    return f"a {type(update).__name__} with lora_A {tuple(update.A.shape)} and lora_B {tuple(update.B.shape)}"


def _wide_enough(terms: Sequence[Weighted]) -> torch.dtype:
    """The dtype in which every B times its factor is what it is in float32 (in float32 and above: theirs)."""
    dtype = _promoted(factor for update, _ in terms for factor in (update.A, update.B))
    if dtype in _LOW_PRECISION and not all(_is_exact(update.B, c, dtype) for update, c in terms):
        return torch.float32
    return dtype


def _is_exact(B: Tensor, c: float, dtype: torch.dtype) -> bool:
    return abs(c) == 1 or torch.equal((B.to(dtype) * c).double(), B.double() * c)


@without_autocast
def truncated(update: LoRAUpdate, r: int | None = None, energy: float | None = None) -> LoRAUpdate:
    """The closest update of rank `r`, or of the smallest rank that keeps the share `energy` of ‖ΔW‖² (with both, of the smaller
    of the two); the update itself when it has no higher rank. The scaling stays, and the factors are of equal norms.

    In an update of slices each slice has the rank. Of DoRA the low-rank part is truncated, and the magnitudes stay.
    Raises `ConfigError` for an `r` below 1, `AlgebraError` for an `energy` that is not a share, or factors that are not finite.

    >>> update = LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)
    >>> truncated(update, energy=0.99).r, torch.allclose(truncated(update, r=1).delta(), update.delta())
    (1, True)
    """
    return truncated_sum([(update, 1)], r, energy)


@without_autocast
def truncated_sum(terms: Sequence[Weighted], r: int | None = None, energy: float | None = None) -> LoRAUpdate:
    """What `truncated` makes of `added`, in much less memory: not even the factors of the sum are put together."""
    terms = _addable(terms)
    first, total = terms[0][0], sum(update.r for update, _ in terms)
    limit = total if r is None else min(check_rank(r), total)
    if energy is not None and not 0 < energy <= 1:
        raise AlgebraError(f"energy={energy!r}: must be the share of the squared norm to keep, such as 0.99.")
    if limit == total and energy is None:
        return added(terms)
    if any(update.is_dora and weight != 1 for update, weight in terms):
        return added(terms)  # which says why not
    for update, _ in terms:
        check_computable(update)
    rows, common = first.rows_per_rank, _common_scaling(terms)
    found = [low_rank.svd(part, limit * rows if energy is None else None) for part in _parts(terms)]
    if energy is not None:
        S = torch.stack([_padded(svd.S, max(len(svd.S) for svd in found)) for svd in found]).square().sum(0).sqrt()
        limit = min(limit, math.ceil(low_rank.rank_for(S, energy) / rows))
    if limit == total:
        return added(terms)
    dtype_A, dtype_B = (_promoted(factors) for factors in zip(*((update.A, update.B) for update, _ in terms), strict=True))
    pairs = [fitted(svd._replace(S=svd.S / common), limit * rows, dtype_B, dtype_A) for svd in found]
    use_rslora = all(update.use_rslora for update, _ in terms)
    return first.with_products(pairs, alpha_for(common, limit, use_rslora), use_rslora)


def _promoted(factors: Iterable[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, (factor.dtype for factor in factors))


def fitted(svd: low_rank.SVD, width: int, dtype_B: torch.dtype, dtype_A: torch.dtype) -> Product:
    """The factors of `svd`, cut or filled with zeros to `width` components."""
    B, A = svd.factors()
    return _fit(B, width, 1).to(dtype_B), _fit(A, width, 0).to(dtype_A)


def _padded(S: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(S, (0, length - len(S)))


def _fit(factor: Tensor, width: int, dim: int) -> Tensor:
    """`factor` cut or filled with zeros to `width` components."""
    have = factor.shape[dim]
    if have >= width:
        return factor.narrow(dim, 0, width)
    shape = list(factor.shape)
    shape[dim] = width - have
    return torch.cat([factor, factor.new_zeros(shape)], dim)


@without_autocast
def spectrum(update: LoRAUpdate) -> Tensor:
    """The singular values of ΔW as a matrix (out, in · kernel), descending, in float64; of DoRA those of its low-rank part, of
    experts those of all. `AlgebraError` for factors that are not finite.

    >>> spectrum(LoRAUpdate(torch.eye(2, 3), torch.eye(4, 2) * torch.tensor([1.0, 3.0]), lora_alpha=4))
    tensor([6., 2.], dtype=torch.float64)
    """
    check_computable(update)
    plain = update.plain()
    found = [low_rank.singular_values([low_rank.Term(B, A, plain.scaling)]) for B, A in plain.products()]
    return found[0] if len(found) == 1 else torch.cat(found).sort(descending=True).values


def check_computable(update: LoRAUpdate) -> None:
    """`AlgebraError` for an update whose ΔW has no singular values."""
    if problem := not_finite(update) or out_of_range(update):
        raise AlgebraError(f"{problem}; the training of it diverged, or the file is damaged.")
