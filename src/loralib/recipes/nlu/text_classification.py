"""Fine-tuning an encoder to classify or score text: what of it is trained, and how it is judged."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel

from ...surgery.bound import Bound
from ...train import prefix
from .. import biases, lora_setup, model_loader, quantizing
from ..options import TrainOptions
from ..plan import Plan
from . import encoders, inputs, metrics

if TYPE_CHECKING:
    from datasets import Dataset


def read_rows(options: TrainOptions) -> "list[Dataset]":
    """The rows to train on, to evaluate on and, where there are some, to score at the end, sampled as asked."""
    return inputs.read_data(options)


def prepare(encoder: encoders.Headed, options: TrainOptions) -> Bound | None:
    """Inject, freeze and start as the options ask for. The layers with LoRA, where there are any."""
    bound = None
    if options.method == "lora":
        bound = lora_setup.inject(encoder.model, options, encoder.head)
    elif options.method == "last-layers":
        encoder.model.requires_grad_(False)
        for name in encoder.head:
            encoder.model.get_submodule(name).requires_grad_(True)
    elif options.method == "bitfit":
        biases.train_biases(encoder.model, encoder.head)
    if options.train_head == "classifier":
        encoders.freeze_all_but_last(encoder)
    return bound


def with_prefix(encoder: encoders.Encoder, options: TrainOptions) -> PreTrainedModel:
    """The model with a prefix in front of its tokens, which is trained with the head."""
    model: PreTrainedModel = prefix.add_prefix(encoder.model, options.prefix, "SEQ_CLS", encoder.head)
    if options.train_head == "classifier":
        encoders.freeze_all_but_last(encoder)
    return model


def plan(options: TrainOptions, data: "Sequence[Dataset]") -> Plan:
    """Load the encoder and prepare it, with the rows as it takes them."""
    labels = getattr(data[0].features["label"], "names", None)
    encoder = encoders.load_encoder(
        options.model or "",
        labels,
        head_dropout=options.head_dropout,
        attention_dropout=options.attention_dropout,
        trust_remote_code=options.trust_remote_code,
    )
    encoders.check_length(encoder, options.length, options.takes_pairs, options.prefix)
    if labels is None:
        encoders.center(encoder, statistics.fmean(data[0]["label"][:]))
    datasets = [inputs.encode(part, encoder.tokenizer, options.length) for part in data]
    for rows in datasets:
        model_loader.check_tokens(encoder.model, encoder.tokenizer, (row["input_ids"] for row in rows))
    quantizing.quantize(encoder.model, options.quantize)
    bound = prepare(encoder, options)
    return Plan(
        model=with_prefix(encoder, options) if options.prefix else encoder.model,
        tokenizer=encoder.tokenizer,
        labels=labels,
        data=data,
        datasets=datasets,
        task_type="SEQ_CLS",
        trainer={"data_collator": DataCollatorWithPadding(encoder.tokenizer), "compute_metrics": _judge},
        bound=bound,
        count=prefix.count_parameters if options.prefix else None,
    )


def _judge(output: EvalPrediction) -> dict[str, float]:
    predictions = output.predictions
    logits = predictions[0] if isinstance(predictions, tuple) else predictions  # a model may also return hidden states
    return metrics.of_logits(np.asarray(logits), np.asarray(output.label_ids))
