"""What is kept of outputs is computed before processes pad them to one shape."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from loralib.train.reducing import ReducingTrainer


class Doubles(nn.Module):
    """Puts out twice its input, without its first column."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        return SimpleNamespace() if labels is None else {"loss": (self.scale * x).sum(), "logits": self.scale * x[:, 1:]}


ROWS = [{"x": torch.arange(4.0) + i, "labels": torch.arange(4) + i} for i in range(5)]


def predictions(folder: Any, **how: Any) -> Any:
    args = TrainingArguments(str(folder), report_to="none", use_cpu=True, per_device_eval_batch_size=2, disable_tqdm=True)
    trainer = ReducingTrainer(Doubles(), args, **how)
    padded = trainer.accelerator.pad_across_processes

    def as_of_two(tensor: Tensor, **how: Any) -> Tensor:
        """As if another process had longer rows."""
        return nn.functional.pad(padded(tensor, **how), (0, 3), value=-100.0) if tensor.ndim > 1 else tensor

    trainer.accelerator.pad_across_processes = as_of_two
    return trainer.predict(ROWS).predictions


def test_outputs_are_reduced_with_their_own_labels(tmp_path: Any) -> None:
    def reduce(logits: Tensor, labels: Tensor) -> Tensor:
        assert logits.shape[1] + 1 == labels.shape[1]
        return (logits * labels[:, 1:]).sum(-1)

    expected = [float((2 * row["x"][1:] * row["labels"][1:]).sum()) for row in ROWS]
    assert predictions(tmp_path, reduce=reduce).tolist() == pytest.approx(expected)


def test_logits_are_kept_where_nothing_is_asked_for(tmp_path: Any) -> None:
    assert predictions(tmp_path).shape == (5, 6)
