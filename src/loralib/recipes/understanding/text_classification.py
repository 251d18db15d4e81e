"""Fine-tuning an encoder to classify or score text, with LoRA, on the head alone, or in full: from data to run folder."""

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import Trainer, TrainerCallback

from ... import __version__, formats, surgery, trained
from ...config import LoRAConfig
from ...errors import RunError
from ...train import measure
from ...train.trainer import AdapterTrainer, last_whole_checkpoint, write_errors_named
from .. import report, runs, start, training
from ..options import TrainOptions
from . import encoders, inputs, labelling, metrics


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C; `checkpoint` is where it can go on from, or None."""

    def __init__(self, folder: Path, checkpoint: Path | None):
        super().__init__(folder, checkpoint)
        self.folder, self.checkpoint = folder, checkpoint


def prepare(encoder: encoders.Encoder, options: TrainOptions) -> None:
    """Inject, freeze and start as the options ask for."""
    if options.method == "lora":
        targets = options.targets or encoders.role_targets(encoder.model, options.roles)
        config = LoRAConfig(
            r=options.r,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=targets,
            modules_to_save=encoder.head,
            use_rslora=options.use_rslora,
        )
        surgery.inject(encoder.model, config)
        trained.mark_only_lora_as_trainable(encoder.model)
        if options.init_adapter:
            start.load_factors(encoder.model, options.init_adapter)
    elif options.method == "last-layers":
        encoder.model.requires_grad_(False)
        for name in encoder.head:
            encoder.model.get_submodule(name).requires_grad_(True)
    if options.train_head == "classifier":
        encoders.freeze_all_but_last(encoder)


@dataclass(frozen=True)
class Plan:
    """All that a run needs, found good before anything is written."""

    labels: list[str] | None
    data: inputs.Rows
    datasets: tuple[list[dict[str, Any]], ...]
    encoder: encoders.Encoder
    parameters: dict[str, int]


def plan(options: TrainOptions, folder: Path) -> Plan:
    """Read the data, load the model and prepare both. Raises `DataError`, `RunError`, `ConfigError` or `TargetError`."""
    data = inputs.read_data(options)
    labels = inputs.classes(options, data.train)
    training.check_metric(options, labels)
    training.arguments(options, folder, len(data.train))
    transformers.set_seed(options.seed)
    dropouts = {"head_dropout": options.head_dropout, "attention_dropout": options.attention_dropout}
    encoder = encoders.load_encoder(options.model or "", labels, **dropouts)
    encoders.check_length(encoder, options.max_length, options.takes_pairs)
    if labels is None:
        encoders.center(encoder, statistics.fmean(labelling.scores(data.train)))
    prepare(encoder, options)
    datasets = tuple(inputs.encode(part, labels, encoder.tokenizer, options.max_length) for part in data if part)
    return Plan(labels, data, datasets, encoder, measure.count_parameters(encoder.model))


def train(
    options: TrainOptions,
    folder: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train as `options` say, write the run folder, and return what `metrics.json` holds.

    overwrite: replace the run that is in `folder`. resume: go on from its last whole checkpoint. console: where progress is
    shown (standard error). callbacks: further ones for Trainer.
    Everything that can be wrong with the words is found before anything is written. Raises `RunError`, `DataError`,
    `ConfigError` or `TargetError` then, `Interrupted` after Ctrl-C, and `OSError` with the path when writing fails.
    """
    processes = training.processes()
    console = console or Console(stderr=True, quiet=not processes.is_main_process)
    if processes.is_main_process:
        runs.check_free(folder, overwrite, resume)
    checkpoint = _checkpoint_to_resume(folder) if resume else None
    planned = plan(options, folder)
    if resume and (known := runs.read_options(folder)[1]) != planned.labels:
        raise RunError(f"the data has other classes than the run in {folder} began with ({known}); restore the data.")
    console.print(_opening(options, planned), highlight=False, soft_wrap=True)
    fresh = not folder.exists()
    how: dict[str, Any] = {"checkpoint": checkpoint, "console": console, "callbacks": callbacks}
    began = time.perf_counter()
    try:
        with write_errors_named(folder):
            if processes.is_main_process and not resume:
                runs.clear(folder)
                runs.write_options(folder, options, planned.labels)
            processes.wait_for_everyone()
            trainer = training.run_trainer(options, folder, planned.encoder, planned.datasets, **how)
            seconds = time.perf_counter() - began
            results = _results(options, planned, trainer, seconds) | {"resumed": resume}
            if planned.data.test:
                results["test"] = training.score(trainer, planned.datasets[2])
            if processes.is_main_process:
                _write(options, folder, planned.encoder, trainer, results)
    except BaseException as error:
        last = last_whole_checkpoint(folder / runs.CHECKPOINTS)
        if last is None and processes.is_main_process:
            runs.clear(folder)
            if fresh:
                shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(folder, last) from None
        raise
    processes.wait_for_everyone()
    return results


def _checkpoint_to_resume(folder: Path) -> Path:
    if (folder / runs.METRICS).is_file():
        raise RunError(f"the run in {folder} is finished; there is nothing to resume.")
    checkpoint = last_whole_checkpoint(folder / runs.CHECKPOINTS)
    if checkpoint is None:
        raise RunError(f"the run in {folder} has no whole checkpoint to resume from; use --overwrite to begin again.")
    return checkpoint


def _opening(options: TrainOptions, planned: Plan) -> str:
    count, total, (rows, held_out, test) = planned.parameters["trained"], planned.parameters["total"], planned.data
    tested = f", and once, at the end, on {len(test):,} rows of {test.source}" if test else ""
    return (
        f"{options.method}: training {count:,} of {total:,} parameters ({count / total:.2%}) of {options.model}\n"
        f"on {len(rows):,} rows of {rows.source}, evaluating on {len(held_out):,} rows of {held_out.source}{tested}"
    )


def _results(options: TrainOptions, planned: Plan, trainer: Trainer, seconds: float) -> dict[str, Any]:
    history = [row for row in trainer.state.log_history if "loss" in row or "eval_loss" in row]
    return {
        **_outcome(options, history),
        "seed": options.seed,
        "learning_rate": options.peak_learning_rate,
        "parameters": planned.parameters,
        "train_rows": len(planned.data.train),
        "eval_rows": len(planned.data.evaluation),
        "test_rows": len(planned.data.test or ()),
        "steps": trainer.state.global_step,
        "train_seconds": seconds,
        "peak_memory_bytes": measure.peak_memory(),
        "device": str(trainer.args.device),
        "threads": torch.get_num_threads(),
        "versions": {"loralib": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "history": history,
    }


def _outcome(options: TrainOptions, history: list[dict[str, float]]) -> dict[str, Any]:
    """What was trained and how good the epoch that was kept is."""
    metric = training.metric_name(options)
    evaluations = [row for row in history if "eval_loss" in row]
    kept = max(evaluations, key=lambda row: row[f"eval_{metric}"]) if options.best_epoch else evaluations[-1]
    names = (*metrics.CLASSIFICATION, *metrics.REGRESSION, "loss")
    return {
        "method": options.method,
        "metric": metric,
        "value": kept[f"eval_{metric}"],
        "metrics": {name: kept[f"eval_{name}"] for name in names if f"eval_{name}" in kept},
        "kept_epoch": kept["epoch"],
    }


def _write(options: TrainOptions, folder: Path, encoder: encoders.Encoder, trainer: Trainer, results: dict[str, Any]) -> None:
    if isinstance(trainer, AdapterTrainer):
        formats.save(trainer.adapter(), folder / runs.ADAPTER)
        results["saved_bytes"] = runs.size(folder / runs.ADAPTER)
        if options.save_merged:
            surgery.merge(encoder.model, keep=False)
            _save_model(encoder, folder / runs.MERGED)
    else:
        _save_model(encoder, folder / runs.MODEL)
        results["saved_bytes"] = runs.size(folder / runs.MODEL)
    title = f"{options.method}, {options.data_name}"
    report.learning_curve(folder / runs.CURVE, results["history"], results["metric"], title)
    runs.write_metrics(folder, results)


def _save_model(encoder: encoders.Encoder, folder: Path) -> None:
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
