"""Grouping by length keeps every row, its order is that of the epoch, and texts of a batch are alike."""

import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from loralib.train.sampling import GroupingTrainer, LengthGrouped


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


ROWS = [{"input_ids": [1 + i % 8] * (1 + 5 * i % 7), "labels": i % 2} for i in range(12)]


def trainer_of(folder: Path, strategy: str = "random", **how: object) -> GroupingTrainer:
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, pad_token_id=0
    )
    args = transformers.TrainingArguments(
        str(folder),
        per_device_eval_batch_size=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy=strategy,
    )
    return GroupingTrainer(transformers.BertForSequenceClassification(config), args, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_texts_are_evaluated_by_length(strategy: str, tmp_path: Path) -> None:
    widths: list[int] = []

    def collate(batch: list[dict[str, object]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row["input_ids"]) for row in batch]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        widths.append(padded.shape[1])
        labels = torch.tensor([row["labels"] for row in batch])
        return {"input_ids": padded, "attention_mask": (padded > 0).long(), "labels": labels}

    trainer = trainer_of(tmp_path, strategy, eval_dataset=ROWS, data_collator=collate)
    found = trainer.evaluate()
    assert widths == [7, 6, 4, 2]
    alone = [trainer.model(**collate([row])).loss.item() for row in ROWS]  # type: ignore[arg-type]
    assert found["eval_loss"] == pytest.approx(statistics.fmean(alone), abs=1e-6)


class Stream(torch.utils.data.IterableDataset[dict[str, object]]):
    def __iter__(self) -> Iterator[dict[str, object]]:
        return iter(ROWS)


@pytest.mark.parametrize("rows", [[], [{"prompt_ids": [1, 2]}, {"prompt_ids": [1]}], [(1, 2), (3, 4)], Stream(), None])
def test_rows_that_do_not_say_their_length_keep_their_order(rows: object, tmp_path: Path) -> None:
    sampler = trainer_of(tmp_path)._get_eval_sampler(rows)
    assert sampler is None or list(sampler) == list(range(len(rows)))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1000, 1003])
def test_batches_of_like_length_come_in_random_order_the_longest_first(rows):
    lengths = torch.randint(5, 60, (rows,), generator=torch.Generator().manual_seed(1)).tolist()
    sampler = LengthGrouped(lengths, 8, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(rows))
    batches = [[lengths[i] for i in order[at : at + 8]] for at in range(0, rows, 8)]
    assert max(batches[0]) == max(lengths)
    whole = [batch for batch in batches if len(batch) == 8]
    assert whole == batches[: len(whole)]  # what is left over comes last
    if rows >= 1000:
        assert sum(max(batch) - min(batch) for batch in whole) / len(whole) < 12
        means = [sum(batch) for batch in whole[:50]]
        assert means != sorted(means, reverse=True)
    sampler.set_epoch(1)
    assert list(sampler) != order or rows <= 8
