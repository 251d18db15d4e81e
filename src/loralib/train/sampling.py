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
    """Rows in random order but for their lengths: within every fifty batches they are sorted by length.

    lengths: of the rows, in tokens. batch_size: rows a step.
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
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


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
