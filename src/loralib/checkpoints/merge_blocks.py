"""W' = W + ΔW for a weight that is never in memory as a whole: rows of it are read, changed in float32 and rounded once.

    W'[i:j] = W[i:j] + s·L[i:j]·R,     ΔW = s·L·R as a matrix with the rows of the stored weight

Where ΔW has no such form (DoRA, 0.1's and transposed convolutions) the weight is one block.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.updates import ConvolutionUpdate, EmbeddingUpdate, LegacyConvolutionUpdate, LoRAUpdate
from .sites import Site

ELEMENTS = 1 << 19  # of a block: 2 MiB in float32


@dataclass(frozen=True)
class Change:
    """An update, and where it lands."""

    update: LoRAUpdate
    site: Site

    @property
    def needs_whole(self) -> bool:
        """Whether rows of W' cannot be computed from the same rows of W alone."""
        return _factored(self) is None


def row_blocks(shape: tuple[int, ...], changes: list[Change]) -> Iterator[tuple[int, int]]:
    """Ranges of rows to compute one by one."""
    rows = shape[0] if shape else 1
    step = rows if any(change.needs_whole for change in changes) else max(1, ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def add_updates(W: Tensor, start: int, changes: list[Change]) -> Tensor:
    """The rows of W' that begin with row `start`, in the dtype of `W`, for those rows of the weight."""
    dtype = torch.promote_types(W.dtype, torch.float32)
    for change in changes:
        dtype = torch.promote_types(dtype, change.update.A.dtype)
    wide = W.to(dtype, copy=True)
    for change in changes:
        found = _factored(change)
        if found is None:
            wide = changed_whole(wide, change)
            continue
        left, right = found
        first, last = max(start, change.site.start), min(start + len(wide), change.site.start + len(left))
        if first < last:
            rows = wide[first - start : last - start].flatten(1)
            part = left[first - change.site.start : last - change.site.start]
            rows.addmm_(part.to(rows.dtype), right.to(rows.dtype), alpha=change.update.scaling)
    return wide.to(W.dtype)


def _factored(change: Change) -> tuple[Tensor, Tensor] | None:
    """L (rows, R) and R (R, columns), for the weight as it is stored; None where there are none."""
    update = change.update
    is_transposed = isinstance(update, ConvolutionUpdate) and update.transposed
    if update.magnitude is not None or isinstance(update, LegacyConvolutionUpdate) or is_transposed:
        return None
    ((B, A),) = update.plain().products()
    return (A.t(), B.t()) if change.site.transposed or isinstance(update, EmbeddingUpdate) else (B, A)


def changed_whole(W: Tensor, change: Change) -> Tensor:
    """W' for a whole weight in its stored layout."""
    update = change.update
    if change.site.transposed:
        return update.effective_weight(W.t()).t()
    if isinstance(update, ConvolutionUpdate) and update.transposed:  # stored as (d, k/g, *), computed with as (k, d/g, *)
        g = update.groups
        outputs_first = W.unflatten(0, (g, -1)).transpose(1, 2).flatten(0, 1)
        changed = update.effective_weight(outputs_first).unflatten(0, (g, -1))
        stored: Tensor = changed.transpose(1, 2).flatten(0, 1)
        return stored
    return update.effective_weight(W)
