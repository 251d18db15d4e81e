"""Fine-tuning a causal language model to write the text of an input: what of it is trained, and how it is judged."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from ...errors import ConfigError, DataError
from ...surgery.bound import Bound
from ...surgery.concerns import concerns
from ...surgery.suggest import suggest
from ...train import devices, prefix
from .. import biases, lora_setup, model_loader, records, sources
from ..chat.form import resolve
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
    elif options.method == "bitfit":
        biases.train_biases(model)
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


def load(options: TrainOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model of a run and its tokenizer. Raises `ConfigError` where several GPUs would share one process."""
    if devices.replicas() > 1:
        raise ConfigError(
            f"this process sees {devices.replicas()} GPUs, among which the loss of texts is not shared; start it by torchrun "
            "--nproc-per-node N -m -- loralib train, or show it one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    model, tokenizer = language_models.load_language_model(
        options.model or "", options.base_dropout, options.trust_remote_code, options.dtype, options.quantize
    )
    model_loader.check_length(model.config, options.length, options.prefix)
    return model, tokenizer


def trainer_arguments(model: PreTrainedModel, collate: Any, smoothing: float) -> dict[str, Any]:
    """What Trainer takes for a language model: how batches are made, and what is learned and measured."""
    return {
        "data_collator": loss.LabelledBatch(collate, model),
        "compute_metrics": _judge,
        "compute_loss_func": loss.training_loss(model, smoothing),
        "reduce": loss.row_losses,
    }


def settled(model: PreTrainedModel, options: TrainOptions, form: str) -> dict[str, Any]:
    """Options that the model decides: the form of its texts, and the learning rate, unless they were given."""
    found: dict[str, Any] = {"chat_template": form}
    if options.learning_rate == "auto":
        rates = suggest(model)
        found["learning_rate"] = rates.learning_rate if options.method == "lora" else rates.full_learning_rate
    return found


def advice(model: PreTrainedModel, options: TrainOptions) -> list[str]:
    """What is far outside of what is known to work with LoRA, among options that are settled."""
    if options.method != "lora":
        return []
    try:
        suggestion = suggest(model)
    except ConfigError:  # a model whose width is not known
        return []
    return [
        f"warning: {concern}" for concern in concerns(suggestion, options.lora, options.peak_learning_rate, options.batch_size)
    ]


def plan(options: TrainOptions, data: "Sequence[Dataset]") -> Plan:
    """Load the language model and prepare it, with the rows as it takes them."""
    model, tokenizer = load(options)
    texts, form = resolve(tokenizer, options.chat_template)
    datasets = [prompts.encode(texts, as_pairs(part), options.length, records.source(part)) for part in data]
    for rows in datasets:
        model_loader.check_tokens(model, tokenizer, (row["input_ids"] for row in rows))
    bound, chosen = prepare(model, options), settled(model, options, form)
    return Plan(
        model=prefix.add_prefix(model, options.prefix, "CAUSAL_LM") if options.prefix else model,
        tokenizer=tokenizer,
        labels=None,
        data=data,
        datasets=datasets,
        task_type="CAUSAL_LM",
        trainer=trainer_arguments(model, prompts.collator(tokenizer), options.label_smoothing_factor),
        bound=bound,
        settled=chosen,
        notes=advice(model, options.updated(chosen)),
        count=prefix.count_parameters if options.prefix else None,
    )


def _judge(output: EvalPrediction) -> dict[str, float]:
    return loss.of_rows(np.asarray(output.predictions))
