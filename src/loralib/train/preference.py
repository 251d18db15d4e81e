"""Direct preference optimization (arXiv 2305.18290) by TRL's DPOTrainer, with one model in memory:

    r(y) = β·(log π(y | x) - log π₀(y | x))        loss = -log σ(r(chosen) - r(rejected))

π is the model with its updates, π₀ the reference, which is the same model with LoRA disabled, or with the values that its
factors had when training began. TRL's own ways would load the reference from the model's path, or be PEFT's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import EvalPrediction, TrainingArguments
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from ..surgery.merge import disabled
from .sampling import GroupingTrainer
from .trainer import AdapterTrainer

IGNORED = -100


class Reference(nn.Module):
    """`model` as it was when training began, on the same Parameters; it has none of its own.

    start: values, by name, of the Parameters that are trained; where it is empty, LoRA had no effect then, and is disabled.
    """

    def __init__(self, model: nn.Module, start: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.config = model.config
        self._model, self._start = (model,), dict(start or {})  # a module in a tuple is not a submodule

    def forward(self, **inputs: Any) -> Any:
        """What the model puts out for `inputs`."""
        (model,) = self._model
        if self._start:
            return torch.func.functional_call(model, self._start, kwargs=inputs)
        with disabled(model):
            return model(**inputs)


class _Recorded:
    """A model, and what it has put out last."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, **inputs: Any) -> Any:
        self.output = self.model(**inputs)
        return self.output


class PreferenceTrainer(AdapterTrainer, GroupingTrainer, DPOTrainer):
    """`AdapterTrainer` that learns preference pairs, with LoRA alone.

    Rows have `prompt_ids`, `chosen_ids`, `rejected_ids` and, for grouping by length, `input_ids`. starts_trained: whether the
    updates have an effect already, so that the reference is the model with them as they are now.
    """

    def __init__(self, model: Any, *args: Any, starts_trained: bool = False, **kwargs: Any):
        for name in ("train_dataset", "eval_dataset"):
            kwargs[name] = Dataset.from_list(list(kwargs[name]))
        super().__init__(model, *args, ref_model=Reference(model), **{"compute_metrics": judge, **kwargs})
        trained = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}
        self.reference = Reference(self.model, trained if starts_trained else None)  # TRL replaced the other one's forward
        self.precompute_ref_logps = True  # `compute_loss` gives TRL the reference's log-probabilities with each batch

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The loss of a batch, next to the reference's log-probabilities."""
        if "ref_chosen_logps" not in inputs:
            inputs = self._with_reference(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _with_reference(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}
        with torch.no_grad(), self.compute_loss_context_manager():
            found = self.reference(**given, use_cache=False, fused_lm_head=True).log_probs.sum(-1)
        chosen, rejected = found.chunk(2)
        return {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """For each pair both rewards and the mean loss of its batch, (rows, 3), as `judge` takes them."""
        inputs, policy = self._with_reference(self._prepare_inputs(inputs)), _Recorded(model)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(policy, inputs)
        chosen, rejected = policy.output.log_probs.sum(-1).chunk(2)
        ratios = chosen - inputs["ref_chosen_logps"], rejected - inputs["ref_rejected_logps"]
        found = torch.stack([self.beta * ratios[0], self.beta * ratios[1], loss.expand(len(chosen))], -1)
        return None, found.double(), torch.zeros(len(found), device=found.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, without what TRL would add and is not so: means of batches' means, and tokens since the last resumption."""
        self._metrics["eval"].clear()
        self._metrics["train"].pop("num_tokens", None)
        super().log(logs, start_time)

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        """Leave the rows as they are: they are tokens already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any) -> Any:
        """Leave the rows as they are: the reference is computed with each batch."""
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a checkpoint is not published."""

    def _send_telemetry(self) -> None:
        """Do nothing: what is trained is reported to nobody."""


def arguments(*, beta: float, loss: str, **values: Any) -> TrainingArguments:
    """TRL's arguments, with its own departures from transformers' defaults taken back.

    beta: how much the model is held to the reference. loss: the kind of loss, as TRL calls it. values: Trainer's arguments.
    """
    usual = {
        "gradient_checkpointing": TrainingArguments.gradient_checkpointing,
        "bf16": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
    }
    return DPOConfig(**{**usual, **values}, beta=beta, loss_type=[loss], max_length=None)


def judge(output: EvalPrediction) -> dict[str, float]:
    """How often the chosen answer has the greater reward, by how much on average, and the mean loss, over all pairs."""
    chosen, rejected, loss = np.asarray(output.predictions).T
    return {
        "reward_accuracy": float((chosen > rejected).mean()),
        "reward_margin": float((chosen - rejected).mean()),
        "loss": float(loss.mean()),
    }
