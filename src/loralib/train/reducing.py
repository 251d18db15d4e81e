"""What evaluation keeps of a batch's outputs is computed where the batch is: outputs are large, and before processes exchange
them they are padded to one shape, after which they no longer fit their labels."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .step_mean import StepMeanTrainer


class ReducingTrainer(StepMeanTrainer):
    """Trainer whose predictions are `reduce(logits, labels)` of each batch, in place of the logits.

    reduce: from a batch's logits and labels to a tensor with a row for each of its rows; None keeps the logits.
    """

    def __init__(self, *args: Any, reduce: Callable[[Tensor, Tensor], Tensor] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._reduce = reduce

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The loss of a batch, what is kept of its outputs, and its labels."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self._reduce is not None and logits is not None and labels is not None:
            first = logits[0] if isinstance(logits, tuple) else logits  # the model may also give its cache
            logits = self._reduce(first, labels)
        return loss, logits, labels
