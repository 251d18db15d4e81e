"""The loss on completions, and perplexity.

    ℓ(t) = (1 - ε)·(-log p(t)) + ε·mean over the vocabulary V of (-log p(v))     averaged over the completion's tokens

with label smoothing ε in training (the paper's Table 11: 0.1 for E2E and WebNLG) and without it in evaluation. Logits, which
take a fifth of a small model's arithmetic and most of its memory, are computed where some row has a label, if the model can.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .prompts import IGNORED


def kept_positions(labels: Tensor) -> Tensor:
    """The positions at which some row has a next token to learn: where logits are needed. labels: (rows, tokens).

    >>> kept_positions(torch.tensor([[IGNORED, IGNORED, 5, 6], [IGNORED, 7, 8, IGNORED]]))
    tensor([0, 1, 2])
    """
    return (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()


def keeps_positions(model: nn.Module) -> bool:
    """Whether the model computes logits at chosen positions alone, as most of transformers' do."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


class LabelledBatch:
    """A collator that adds where logits are needed, for a model that can leave out the others.

    collate: makes the batch, of `input_ids` and `labels` among others.
    """

    def __init__(self, collate: Callable[[Any], Any], model: nn.Module):
        self.collate, self.keeps = collate, keeps_positions(model)

    def __call__(self, rows: Any) -> Any:
        """The batch of `rows`."""
        batch = self.collate(rows)
        return batch | {"logits_to_keep": kept_positions(batch["labels"])} if self.keeps else batch


def token_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The loss of each token, 0 where there is none to predict, in at least float32.

    logits: (rows, tokens, V), or (rows, positions, V) at `kept_positions` alone. labels: (rows, tokens), `IGNORED` where
    nothing is learned. The result has shape (rows, tokens - 1), as the first token is predicted by nothing, or
    (rows, positions).
    """
    if logits.shape[1] == labels.shape[1]:
        shifted, targets = logits[:, :-1], labels[:, 1:]
    else:
        shifted, targets = logits, labels[:, kept_positions(labels) + 1]
    if shifted.dtype in (torch.bfloat16, torch.float16):
        shifted = shifted.float()
    losses = F.cross_entropy(
        shifted.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
    )
    return losses.reshape(targets.shape)


def training_loss(model: nn.Module, smoothing: float) -> Callable[..., Tensor]:
    """The loss for Trainer: smoothed while `model` is in training mode, per token of the whole step that is accumulated."""

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        losses = token_losses(outputs.logits, labels, smoothing if model.training else 0.0)
        count = (labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / count

    return loss


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """For each row the sum of its tokens' losses and their number, shape (rows, 2): all that evaluation keeps of logits."""
    losses, counts = token_losses(logits, labels), (labels[:, 1:] != IGNORED).sum(-1)
    return torch.stack([losses.sum(-1).double(), counts.double()], -1)


def of_rows(sums: NDArray[np.float64]) -> dict[str, float]:
    """Perplexity and the mean loss in nats, per token of all rows. sums: as `row_losses`, shape (rows, 2).

    >>> of_rows(np.array([[2.0, 1.0], [4.0, 2.0]]))["nll"]
    2.0
    """
    total, count = sums.sum(0)
    nll = float(total / count)
    return {"perplexity": float(np.exp(min(nll, 700.0))), "nll": nll}
