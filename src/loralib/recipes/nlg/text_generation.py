"""Fine-tuning a causal language model to write the text of an input: what of it is trained, and how it is judged."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel

from ...errors import ConfigError, DataError
from ...surgery.bound import Bound
from ...train import devices
from .. import lora_setup, model_loader, records, sources
from ..options import TrainOptions
from ..plan import Plan
from . import language_models, loss, prompts
from .examples import pairs, read_jsonl
from .tasks import read_split

if TYPE_CHECKING:
    from datasets import Dataset


def prepare(model: PreTrainedModel, options: TrainOptions) -> Bound | None:
    """Inject, freeze and start as the options ask for. The layers with LoRA, where there are any."""
    bound = None
    if options.method == "lora":
        bound = lora_setup.inject(model, options)
    elif options.method == "last-layers":
        language_models.freeze_all_but_last_blocks(model)
    return bound


def read_rows(options: TrainOptions) -> "list[Dataset]":
    """The rows of a run, sampled as asked: each text with its input. Raises `DataError` when they cannot be had."""

    def read_own(option: str, name: str, split: str | None) -> "Dataset":
        if not records.is_local_file(name):
            raise DataError(
                f"{name!r} is not a .jsonl file (or .gz of one), which data to generate from are; give the path of one."
            )
        return read_jsonl(name, options.context_column, options.completion_column)

    found = sources.read(options, read_split, read_own)
    return sources.share_out(options, [part and pairs(part) for part in found], by="context")


def as_pairs(data: "Dataset") -> list[tuple[str, str]]:
    """Each context with its completion."""
    return list(zip(data["context"][:], data["completion"][:], strict=True))


def plan(options: TrainOptions, data: "Sequence[Dataset]") -> Plan:
    """Load the language model and prepare it, with the rows as it takes them."""
    if devices.replicas() > 1:
        raise ConfigError(
            f"this process sees {devices.replicas()} GPUs, among which the loss of texts is not shared; start it by torchrun "
            "--nproc-per-node N -m -- loralib train, or show it one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    model, tokenizer = language_models.load_language_model(options.model or "", options.base_dropout, options.trust_remote_code)
    model_loader.check_length(model.config, options.length)
    datasets = [prompts.encode(tokenizer, as_pairs(part), options.length, records.source(part)) for part in data]
    for rows in datasets:
        model_loader.check_tokens(model, tokenizer, (row["input_ids"] for row in rows))
    bound = prepare(model, options)
    return Plan(
        model=model,
        tokenizer=tokenizer,
        labels=None,
        data=data,
        datasets=datasets,
        task_type="CAUSAL_LM",
        trainer={
            "data_collator": loss.LabelledBatch(prompts.collator(tokenizer), model),
            "compute_metrics": _judge,
            "compute_loss_func": loss.training_loss(model, options.label_smoothing_factor),
            "preprocess_logits_for_metrics": _losses,
        },
        bound=bound,
    )


def _losses(output: Any, labels: Tensor) -> Tensor:
    logits = output[0] if isinstance(output, tuple) else output  # Trainer may also keep the cache
    return loss.row_losses(logits, labels)


def _judge(output: EvalPrediction) -> dict[str, float]:
    return loss.of_rows(np.asarray(output.predictions))
