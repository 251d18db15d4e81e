"""The loss of an optimizer step: the mean over all labels of the step, however the step is cut into parts.

    L = Σᵢ nᵢ·ℓᵢ / Σᵢ nᵢ        ℓᵢ: the model's own mean loss of part i, nᵢ: how many labels part i has

The parts are those that gradients are accumulated over, the processes and the replicas. Trainer does so only where the model
divides by `num_items_in_batch`; most classification heads accept the argument (as `**kwargs`) and ignore it, and Trainer then
divides by nothing: loss and gradient are as many times too large as there are parts.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

IGNORED = -100  # torch's ignore_index, for labels that are classes


class StepMeanTrainer(Trainer):
    """Trainer, with the loss of a step as the mean over its labels for every head.

    Trainer's own way is kept where it is right: for a `compute_loss_func`, for a language model that divides by
    `num_items_in_batch`, for one that claims to (`accepts_loss_kwargs = True`), and for a
    subclass, or another Trainer behind this one, with a `compute_loss`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        self._shifts = _predicts_next_token(model)
        divides = self.model_accepts_loss_kwargs and (self._shifts or self.label_smoother is not None)
        claims = getattr(model, "accepts_loss_kwargs", None) is True
        self._weighs = not (divides or claims or self.compute_loss_func) and self._loss_is_the_models()
        if self._weighs:
            self.model_accepts_loss_kwargs = False  # the model gives its mean, and Trainer divides by the number of parts

    def _loss_is_the_models(self) -> bool:
        """Whether no subclass, and no Trainer behind this one, computes a loss of its own."""
        behind: Any = super().compute_loss
        return type(self).compute_loss is StepMeanTrainer.compute_loss and behind.__func__ is Trainer.compute_loss

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The parts of a step and, where they are weighed, how many labels a part has on average.

        Args:
            epoch_iterator: Of the batches.
            num_batches: How many parts the step has.
            device: Where the loss is computed.

        Returns:
            The parts, and the number of labels (None where the model does not need it).
        """
        parts, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not self._weighs or not parts or not all(_has_labels(part) for part in parts):
            return parts, items
        total = torch.stack([self._count(part["labels"]) for part in parts]).sum().to(device)
        if self.args.world_size > 1 and self.args.average_tokens_across_devices:
            total = self.accelerator.gather(total).float().mean()
        return parts, total.clamp(min=1 / self.args.world_size) / len(parts)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The loss of a part, weighed by its share of the step's labels.

        Args:
            model: The model, wrapped or not.
            inputs: The batch, with its labels.
            return_outputs: Return the model's outputs too.
            num_items_in_batch: As `get_batch_samples` counts.

        Returns:
            The loss, a scalar; with `return_outputs`, the pair of loss and outputs.
        """
        if not self._weighs or not _has_labels(inputs) or (model.training and num_items_in_batch is None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        replicas = labels.chunk(loss.numel())  # as DataParallel shares out rows, which gives a loss a replica
        counts = torch.stack([self._count(part) for part in replicas]).to(loss.device).reshape(loss.shape)
        items = num_items_in_batch.to(loss.device) if model.training else counts.sum().clamp(min=1)
        loss = loss.where(counts > 0, 0.0) * (counts * counts.numel() / items)
        return (loss, outputs) if return_outputs else loss

    def _count(self, labels: Tensor) -> Tensor:
        """How many labels the model averages over."""
        labels = labels[..., 1:] if self._shifts else labels
        return torch.tensor(labels.numel()) if labels.is_floating_point() else (labels != IGNORED).sum()


def _has_labels(batch: Any) -> bool:
    return isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor)


def _predicts_next_token(model: nn.Module) -> bool:
    """Whether the model's loss leaves out the first label of each row."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    shifted = LOSS_MAPPING.get(getattr(model, "loss_type", None) or "") is ForCausalLMLoss
    return shifted or type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
