"""Several rows in one, without padding between them: each begins at position 0 and attends to itself alone.

Models of transformers see by positions that start again where a row begins, and keep attention within it, when no mask is
given. Those that do not are refused by `check_kept_apart`, which compares two packed rows with the same rows apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..nlg.prompts import IGNORED

Row = Mapping[str, Sequence[int]]


def pack(rows: Sequence[Row], length: int) -> list[dict[str, list[int]]]:
    """The rows in as few of `length` tokens as best-fit decreasing finds, each with the `seq_lengths` of its parts."""
    from datasets import Dataset, disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
    from trl.data_utils import pack_dataset

    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        table = Dataset.from_list([{"input_ids": list(row["input_ids"]), "labels": list(row["labels"])} for row in rows])
        packed: list[dict[str, list[int]]] = pack_dataset(table, length).to_list()
    finally:
        if shown:
            enable_progress_bars()
    return packed


class PackedCollator:
    """Makes a batch of packed rows: `input_ids`, `labels` and `position_ids`, each (rows, tokens), and no mask.

    pad: the token that fills shorter rows up; what is filled is a part of its own, which nothing is learned from.
    """

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of `rows`."""
        width = max(len(row["input_ids"]) for row in rows)
        found: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for row in rows:
            more = width - len(row["input_ids"])
            lengths = [*(row.get("seq_lengths") or [len(row["input_ids"])]), more]
            firsts = {sum(lengths[:i]) for i in range(len(lengths))}
            labels = [IGNORED if i in firsts else label for i, label in enumerate(row["labels"])]
            found["input_ids"].append([*row["input_ids"], *[self.pad] * more])
            found["labels"].append([*labels, *[IGNORED] * more])
            found["position_ids"].append([i for length in lengths for i in range(length)])
        return {name: torch.tensor(values) for name, values in found.items()}


@torch.no_grad()
def check_kept_apart(model: nn.Module, ids: Sequence[int]) -> None:
    """`ConfigError` when the model lets packed rows see each other. ids: any tokens, at least two."""
    first, second = list(ids[:1]) * 2, list(ids[1:2]) * 3
    training, device = model.training, next(model.parameters()).device
    collate = PackedCollator(0)
    try:
        model.eval()
        apart = collate([{"input_ids": second, "labels": second}])
        together = collate([{"input_ids": first + second, "labels": first + second, "seq_lengths": [2, 3]}])
        logits = [_logits(model, batch, device) for batch in (apart, together)]
    finally:
        model.train(training)
    worst = float((logits[0] - logits[1][-3:]).abs().max())
    if not worst <= 1e-2 * float(logits[0].abs().max()):
        raise ConfigError(
            f"packing=True: a {type(model).__name__} does not keep packed rows apart (logits differ by {worst:.2g}); leave "
            "--packing out."
        )


def _logits(model: nn.Module, batch: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """The logits (tokens, V) of the one row of a batch."""
    inputs = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
    logits: Tensor = model(**inputs, use_cache=False).logits[0].float()
    return logits
