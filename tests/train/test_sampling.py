"""Grouping by length keeps every row, its order is that of the epoch, and texts of a batch are alike."""

import statistics

from hypothesis import given
from hypothesis import strategies as st

from loralib.train.sampling import LengthGrouped


@given(st.lists(st.integers(1, 512), min_size=1, max_size=300), st.integers(1, 32), st.integers(0, 9))
def test_every_row_comes_once_in_an_order_of_its_epoch(lengths: list[int], batch: int, epoch: int) -> None:
    sampler = LengthGrouped(lengths, batch, seed=3)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) == list(range(len(sampler)))
    again = LengthGrouped(lengths, batch, seed=3)
    again.set_epoch(epoch)
    assert list(again) == order


def test_epochs_and_seeds_differ_and_batches_are_alike() -> None:
    lengths = [(7 * i) % 101 + 1 for i in range(1000)]
    sampler = LengthGrouped(lengths, 10, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthGrouped(lengths, 10, seed=5)) != first
    batches = [[lengths[i] for i in first[k : k + 10]] for k in range(0, 1000, 10)]
    assert statistics.fmean(max(batch) - min(batch) for batch in batches) < 10
