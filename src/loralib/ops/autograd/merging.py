"""Adding low-rank products to a weight, by blocks of rows that stay in the cache.

    W'[i:j] = W[i:j] + s·L[i:j]·R

A block is computed by itself, and by one thread of torch, so that a weight in a file, which is never in memory as a whole, gets
the same bits: those of a product depend on how many threads share it. Several blocks are computed side by side.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor

from .. import large_pages
from ..reference import Strip, wide_dtype

ELEMENTS = 1 << 19  # of a block: 2 MiB in float32

_ONE_AT_A_TIME = threading.RLock()
_here = threading.local()
_FEW = 8  # blocks below which starting threads takes longer than they save


def row_blocks(rows: int, width: int, breaks: Iterable[int] = ()) -> Iterator[tuple[int, int]]:
    """Ranges of rows of a matrix (rows, width) to compute one by one; each of `breaks` begins a range.

    >>> list(row_blocks(5, ELEMENTS // 2, breaks=[3]))
    [(0, 2), (2, 3), (3, 5)]
    """
    step = max(1, ELEMENTS // max(1, width))
    edges = sorted({0, rows, *(row for row in breaks if 0 < row < rows)})
    for first, last in pairwise(edges):
        for start in range(first, last, step):
            yield start, min(last, start + step)


def breaks_of(strips: Iterable[Strip]) -> set[int]:
    """The rows at which one of `strips` begins or ends."""
    return {row for strip in strips for row in (strip.row, strip.row + len(strip.L))}


def add_strips(W: Tensor, strips: Sequence[Strip], scaling: float) -> Tensor:
    """W + scaling·ΣL·R, as `reference.add_strips`."""
    merged = large_pages.ask(torch.empty_like(W, memory_format=torch.contiguous_format))
    if W.is_cpu or W.dtype != wide_dtype(W, strips):
        blocks = list(row_blocks(len(W), W.shape[1], breaks_of(strips)))
    else:  # no cache to stay in, and nothing to convert: one product
        blocks = [(0, len(W))]

    def compute(block: tuple[int, int]) -> None:
        first, last = block
        add_to_block(W[first:last], first, strips, scaling, merged[first:last])

    with one_thread() if W.is_cpu else nullcontext(1) as threads:
        if threads > 1 and len(blocks) >= _FEW:
            with single_threads(min(threads, len(blocks))) as pool:
                list(pool.map(compute, blocks))
        else:
            for block in blocks:
                compute(block)
    return merged


@contextmanager
def single_threads(count: int) -> Iterator[Executor]:
    """Context manager: `count` threads, in each of which torch computes without autograd and without threads of its own."""
    with one_thread(), ThreadPoolExecutor(count, initializer=_compute_alone) as pool:
        yield pool


def _compute_alone() -> None:
    _here.alone = True
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


@contextmanager
def one_thread() -> Iterator[int]:
    """Context manager: torch computes with one thread; the number that it had is what `with` gives. One caller at a time, or a
    second one would find 1 and leave that behind. Nothing happens in a thread that computes alone."""
    if getattr(_here, "alone", False):
        yield 1
        return
    with _ONE_AT_A_TIME:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield before
        finally:
            torch.set_num_threads(before)


def add_to_block(block: Tensor, first: int, strips: Sequence[Strip], scaling: float, out: Tensor) -> None:
    """Write the rows of `add_strips` that begin with row `first` to `out`, for those rows of W."""
    wide = wide_dtype(block, strips)
    here = [cut for strip in strips if (cut := _within(strip, first, len(block))) is not None]
    if not here:
        out.copy_(block)
    elif len(here) == 1 and block.dtype == wide and (len(here[0].L), here[0].R.shape[1]) == block.shape:
        torch.addmm(block, here[0].L.to(wide), here[0].R.to(wide), alpha=scaling, out=out)
    else:
        result = _scratch(block, wide).copy_(block)
        for row, column, L, R in here:
            part = result[row : row + len(L), column : column + R.shape[1]]
            part.addmm_(L.to(wide), R.to(wide), alpha=scaling)
        out.copy_(result)


def _scratch(like: Tensor, dtype: torch.dtype) -> Tensor:
    """New memory of this shape; in a thread that computes alone the same for block after block, which stays in the cache."""
    if not getattr(_here, "alone", False):
        return like.new_empty(like.shape, dtype=dtype)
    held: Tensor | None = getattr(_here, "scratch", None)
    if held is None or held.dtype != dtype or held.numel() < like.numel():
        held = _here.scratch = like.new_empty(like.numel(), dtype=dtype)
    return held[: like.numel()].view(like.shape)


def _within(strip: Strip, first: int, count: int) -> Strip | None:
    """The part of `strip` in `count` rows from row `first` on, placed relative to them; None where there is none."""
    start, stop = max(first, strip.row), min(first + count, strip.row + len(strip.L))
    if start >= stop:
        return None
    return Strip(start - first, strip.column, strip.L[start - strip.row : stop - strip.row], strip.R)
