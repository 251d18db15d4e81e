"""W' = W + ΔW for a weight that is never in memory as a whole: rows of it are read, changed in float32 and rounded once.

The blocks, and what is computed in each, are those of `LoRAUpdate.effective_weight`, so that merging a model and merging its
files give the same bits. Where rows of W' do not come from the same rows of W alone (DoRA, 0.1's and transposed convolutions)
the weight is one block.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..adapters.convolution_updates import LegacyConvolutionUpdate
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.layout import Layout
from ..adapters.updates import LoRAUpdate


@dataclass(frozen=True)
class Change:
    """An update, and how the weight that it changes is stored."""

    update: LoRAUpdate
    layout: Layout

    @cached_property
    def strips(self) -> list[ops.Strip] | None:
        """The update's low-rank products as blocks of the stored weight's rows; None where it changes the weight as a whole."""
        return None if isinstance(self.update, LegacyConvolutionUpdate) else self.update.strips(self.layout)

    def rows(self, count: int) -> tuple[int, int]:
        """The first row that it changes of a tensor of `count` rows, and the row after the last."""
        return self.layout.start, self.layout.start + (count if self.layout.rows is None else self.layout.rows)

    def blocks(self, shape: tuple[int, ...]) -> Iterator["Block"]:
        """The ranges of rows of a tensor of `shape` that are computed one by one."""
        start, stop = self.rows(shape[0])
        if self.strips is None:
            yield Block(start, stop, self)
            return
        width, breaks = math.prod(shape[1:]), ops.breaks_of(self.strips)
        if isinstance(self.update, ExpertsUpdate):  # an expert is a row
            breaks = set(range(start, stop))
        for first, last in ops.row_blocks(stop - start, width, breaks):
            yield Block(start + first, start + last, self)

    def effective_rows(self, W: Tensor, first: int) -> Tensor:
        """The rows of W' that begin with row `first` of the stored tensor, for those rows `W`, which are one of `blocks`."""
        if self.strips is None:
            return self.update.effective_weight(W, self.layout)
        changed = torch.empty_like(W, memory_format=torch.contiguous_format)
        block, out = self.update.as_matrix(self.update.as_used(W)), self.update.as_matrix(changed)
        above = (first - self.layout.start) * (len(block) // len(W))
        for start, stop in ops.row_blocks(len(block), block.shape[1]):  # several where a row is an expert
            ops.add_to_block(block[start:stop], above + start, self.strips, self.update.scaling, out[start:stop])
        return changed


class Block(NamedTuple):
    """Rows `first` to `last` of a tensor, and what changes them, if anything does."""

    first: int
    last: int
    change: Change | None

    def effective_rows(self, W: Tensor) -> Tensor:
        """These rows of W', for the same rows `W` of the tensor."""
        return W if self.change is None else self.change.effective_rows(W, self.first)


def blocks_of(shape: tuple[int, ...], changes: Sequence[Change]) -> Iterator[Block]:
    """Ranges of rows of a tensor of `shape` that together are all of it: those that `changes` change, no two of them the same
    rows, and those that stay as they are."""
    rows, at = shape[0], 0
    for change in sorted(changes, key=lambda change: change.layout.start):
        start, stop = change.rows(rows)
        yield from _unchanged(at, start, shape)
        yield from change.blocks(shape)
        at = stop
    yield from _unchanged(at, rows, shape)


def _unchanged(start: int, stop: int, shape: tuple[int, ...]) -> Iterator[Block]:
    for first, last in ops.row_blocks(stop - start, math.prod(shape[1:])):
        yield Block(start + first, start + last, None)
