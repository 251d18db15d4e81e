"""Fine-tuning an encoder to classify or score text: what of it is trained, and how it is judged."""

import statistics
from pathlib import Path

import numpy as np
import transformers
from transformers import DataCollatorWithPadding, EvalPrediction

from ...train import measure
from .. import lora_setup, training
from ..options import TrainOptions
from ..plan import Plan, Sources
from . import encoders, inputs, labelling, metrics


def prepare(encoder: encoders.Encoder, options: TrainOptions) -> None:
    """Inject, freeze and start as the options ask for."""
    if options.method == "lora":
        lora_setup.inject(encoder.model, options, encoder.head)
    elif options.method == "last-layers":
        encoder.model.requires_grad_(False)
        for name in encoder.head:
            encoder.model.get_submodule(name).requires_grad_(True)
    if options.train_head == "classifier":
        encoders.freeze_all_but_last(encoder)


def read_rows(options: TrainOptions) -> inputs.Rows:
    """The rows of a run, sampled as the options ask."""
    return inputs.read_data(options)


def plan(options: TrainOptions, folder: Path) -> Plan:
    """Read the data, load the model and prepare both. Raises `DataError`, `RunError`, `ConfigError` or `TargetError`."""
    data = read_rows(options)
    labels = inputs.classes(options, data.train)
    training.check_metric(options, metrics.CLASSIFICATION if labels else metrics.REGRESSION)
    training.arguments(options, folder, len(data.train))
    transformers.set_seed(options.seed)
    dropouts = {"head_dropout": options.head_dropout, "attention_dropout": options.attention_dropout}
    encoder = encoders.load_encoder(options.model or "", labels, **dropouts)
    encoders.check_length(encoder, options.length, options.takes_pairs)
    if labels is None:
        encoders.center(encoder, statistics.fmean(labelling.scores(data.train)))
    prepare(encoder, options)
    return Plan(
        model=encoder.model,
        tokenizer=encoder.tokenizer,
        labels=labels,
        data=Sources(*data),
        datasets=[inputs.encode(part, labels, encoder.tokenizer, options.length) for part in data if part],
        collator=DataCollatorWithPadding(encoder.tokenizer),
        judge=_judge,
        metrics=(*metrics.CLASSIFICATION, *metrics.REGRESSION),
        task_type="SEQ_CLS",
        parameters=measure.count_parameters(encoder.model),
    )


def _judge(output: EvalPrediction) -> dict[str, float]:
    predictions = output.predictions
    logits = predictions[0] if isinstance(predictions, tuple) else predictions  # a model may also return hidden states
    return metrics.of_logits(np.asarray(logits), np.asarray(output.label_ids))
