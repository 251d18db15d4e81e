"""Texts of similar length in one batch, in an order that depends on the seed and the epoch alone, so that a resumed run sees
the rows that are left of its epoch, each once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import has_length

from .reducing import ReducingTrainer


class LengthGrouped(Sampler[int]):
    """Batches of rows of like length, in random order: among every fifty batches' rows, drawn at random, those of like length
    share a batch, and the batches of the whole epoch are drawn once more.

    The batch with the longest row comes first, so that what does not fit into memory shows at once. lengths: of the rows, in
    tokens. batch_size: rows a step.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        sorted_in_parts = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        first, *others = (sorted_in_parts[at : at + self.batch_size] for at in range(0, len(self), self.batch_size))
        last = [others.pop()] if others and len(others[-1]) < self.batch_size else []
        drawn = [others[i] for i in torch.randperm(len(others), generator=generator).tolist()]
        return iter([i for batch in (first, *drawn, *last) for i in batch])


def by_length(lengths: Sequence[int]) -> list[int]:
    """The places of the longest to the shortest: what does not fit into memory shows at once.

    >>> by_length([2, 9, 4])
    [1, 2, 0]
    """
    return sorted(range(len(lengths)), key=lambda at: -lengths[at])


class GroupingTrainer(ReducingTrainer):
    """Trainer, whose own way of grouping texts by length draws another order when a run is resumed.

    It evaluates rows with `input_ids` by length, where their order cannot matter: what it predicts is in that order.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = _lengths(self.train_dataset if train_dataset is None else train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGrouped(lengths, step, self.args.seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        sized: bool = has_length(eval_dataset)
        first = next(iter(eval_dataset), None) if sized else None
        if not isinstance(first, Mapping) or "input_ids" not in first:
            return super()._get_eval_sampler(eval_dataset)
        return by_length(_lengths(eval_dataset))


def _lengths(rows: Any) -> list[int]:
    return [len(row["input_ids"]) for row in rows]
