"""Fine-tuning a causal language model to write the text of an input: what of it is trained, and how it is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel

from ...errors import ConfigError, DataError
from .. import lora_setup, model_loader, records, training
from ..options import HELD_OUT, TrainOptions
from ..plan import Plan
from . import language_models, loss, prompts
from .examples import GenerationData
from .jsonl import read_jsonl
from .tasks import read_split


def prepare(model: PreTrainedModel, options: TrainOptions) -> None:
    """Inject, freeze and start as the options ask for."""
    if options.method == "lora":
        lora_setup.inject(model, options)
    elif options.method == "last-layers":
        language_models.freeze_all_but_last_blocks(model)


def read_data(options: TrainOptions) -> tuple[GenerationData, GenerationData, GenerationData | None]:
    """What a run trains on, is evaluated on and is scored on at the end. Raises `DataError` when it cannot be had."""
    test: GenerationData | None = None
    if options.task:
        train, held_out = (read_split(options.task, split, options.data_dir) for split in ("train", "dev"))
        if options.eval_fraction:
            test, (train, held_out) = held_out if options.tests else None, train.split(options.eval_fraction, options.seed)
        return train, held_out, test
    assert options.data is not None
    train = _read_own(options, options.data)
    if options.eval_data:
        held_out = _read_own(options, options.eval_data)
    else:
        train, held_out = train.split(options.eval_fraction or HELD_OUT, options.seed)
    test = _read_own(options, options.test_data) if options.test_data and options.tests else None
    return train, held_out, test


def _read_own(options: TrainOptions, path: str) -> GenerationData:
    if not records.is_local_file(path):
        raise DataError(f"{path!r} is no .jsonl file (or .gz of one), which data to generate from are; give the path of one.")
    return read_jsonl(path, options.context_column, options.completion_column)


@dataclass(frozen=True)
class Rows:
    """The pairs of input and text that are trained on, or evaluated on."""

    source: str
    pairs: Sequence[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.pairs)


def read_rows(options: TrainOptions) -> list[Rows]:
    """The rows that a run trains on, is evaluated on and, where there are some, is scored on at the end, sampled as asked.

    Raises `DataError` when they cannot be had.
    """
    most = (options.max_train_rows, options.max_eval_rows, options.max_test_rows)
    read = zip(read_data(options), most, strict=True)
    return [Rows(data.source, records.sample(data.pairs(), n, options.seed)) for data, n in read if data]


def plan(options: TrainOptions, data: Sequence[Rows]) -> Plan:
    """Load the language model and prepare it, with the rows as it takes them."""
    if training.replicas() > 1:
        raise ConfigError(
            f"this process sees {training.replicas()} GPUs, among which the loss of texts is not shared; start it by torchrun "
            "--nproc-per-node N -m loralib train, or show it one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    model, tokenizer = language_models.load_language_model(options.model or "", options.base_dropout)
    model_loader.check_length(model.config, options.length)
    prepare(model, options)
    return Plan(
        model=model,
        tokenizer=tokenizer,
        labels=None,
        data=data,
        datasets=[prompts.encode(tokenizer, part.pairs, options.length, part.source) for part in data],
        task_type="CAUSAL_LM",
        trainer={
            "data_collator": prompts.collator(tokenizer),
            "compute_metrics": _judge,
            "compute_loss_func": loss.training_loss(model, options.label_smoothing_factor),
            "preprocess_logits_for_metrics": _losses,
        },
    )


def _losses(output: Any, labels: Tensor) -> Tensor:
    logits = output[0] if isinstance(output, tuple) else output  # Trainer may also keep the cache
    return loss.row_losses(logits, labels)


def _judge(output: EvalPrediction) -> dict[str, float]:
    return loss.of_rows(np.asarray(output.predictions))
