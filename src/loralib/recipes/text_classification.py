"""Fine-tuning an encoder to classify or score text: with LoRA, on the head alone, or in full.

train(options)              a run, from data to run folder
open_run(folder)            the trained model again, for `evaluate` and `predict`
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .. import __version__, formats, surgery, trained
from ..config import LoRAConfig
from ..errors import ConfigError, RunError
from ..train import measure
from ..train.callbacks import ProgressBar, StopOnInterrupt
from ..train.trainer import AdapterTrainer, last_whole_checkpoint, write_errors_named
from . import inputs, metrics, models, report, runs
from .glue import TASKS
from .options import TrainOptions
from .readers import TextData

TASK_TYPE = "SEQ_CLS"


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C; `checkpoint` is where it can go on from, or None."""

    def __init__(self, folder: Path, checkpoint: Path | None):
        super().__init__(folder, checkpoint)
        self.folder, self.checkpoint = folder, checkpoint


# --- the model ------------------------------------------------------------------------------------------------------


def prepare(encoder: models.Encoder, options: TrainOptions) -> None:
    """Inject and freeze what the method asks for."""
    if options.method == "lora":
        targets = options.targets or models.default_targets(encoder.model)
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
    elif options.method == "last-layers":
        encoder.model.requires_grad_(False)
        for name in encoder.head:
            encoder.model.get_submodule(name).requires_grad_(True)


# --- training -------------------------------------------------------------------------------------------------------


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
    `ConfigError` or `TargetError` then, and `Interrupted` after Ctrl-C.
    """
    distributed = processes()
    console = console or Console(stderr=True, quiet=not distributed.is_main_process)
    if distributed.is_main_process:
        runs.check_free(folder, overwrite, resume)
    checkpoint = _checkpoint_to_resume(folder) if resume else None
    rows, held_out = inputs.read_data(options)
    labels = inputs.classes(options, rows)
    _check_metric(options, labels)
    transformers.set_seed(options.seed)
    encoder = models.load_encoder(options.model or "", labels)
    prepare(encoder, options)
    datasets = [inputs.encode(data, labels, encoder.tokenizer, options.max_length) for data in (rows, held_out)]
    counts = measure.count_parameters(encoder.model)
    console.print(_opening(options, rows, held_out, counts), highlight=False, soft_wrap=True)
    distributed.wait_for_everyone()
    fresh = not folder.exists()
    if distributed.is_main_process:
        if not resume:
            runs.clear(folder)
        runs.write_options(folder, options, labels)
    began = time.perf_counter()
    try:
        with write_errors_named(folder):
            trainer = _run_trainer(options, folder, encoder, datasets, checkpoint, console, callbacks)
    except BaseException as error:
        last = last_whole_checkpoint(folder / runs.CHECKPOINTS)
        if last is None and fresh and distributed.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(folder, last) from None
        raise
    seconds = time.perf_counter() - began
    history = [row for row in trainer.state.log_history if "loss" in row or "eval_loss" in row]
    results = {
        **_outcome(options, history),
        "parameters": counts,
        "train_rows": len(rows),
        "eval_rows": len(held_out),
        "steps": trainer.state.global_step,
        "train_seconds": seconds,
        "peak_memory_bytes": measure.peak_memory(),
        "device": str(trainer.args.device),
        "threads": torch.get_num_threads(),
        "versions": {"loralib": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "history": history,
    }
    if distributed.is_main_process:
        _write(options, folder, encoder, trainer, results)
    distributed.wait_for_everyone()
    return results


def processes() -> accelerate.PartialState:
    """The processes that torchrun started, on accelerators or on processors; one without it."""
    return accelerate.PartialState(cpu=not torch.accelerator.is_available())


def _checkpoint_to_resume(folder: Path) -> Path:
    if (folder / runs.METRICS).is_file():
        raise RunError(f"the run in {folder} is finished; there is nothing to resume.")
    checkpoint = last_whole_checkpoint(folder / runs.CHECKPOINTS)
    if checkpoint is None:
        raise RunError(f"the run in {folder} has no whole checkpoint to resume from; use --overwrite to begin again.")
    return checkpoint


def metric_name(options: TrainOptions) -> str:
    """The metric that chooses the best epoch and stands in the table."""
    if options.metric:
        return options.metric
    if options.task:
        return TASKS[options.task].metric
    return "accuracy" if options.problem == "classification" else "pearson"


def _check_metric(options: TrainOptions, labels: list[str] | None) -> None:
    known = metrics.CLASSIFICATION if labels else metrics.REGRESSION
    if metric_name(options) not in known:
        raise ConfigError(f"metric={options.metric!r}: must be one of {', '.join(known)} for this problem.")


def _opening(options: TrainOptions, rows: TextData, held_out: TextData, counts: Mapping[str, int]) -> str:
    trained_, total = counts["trained"], counts["total"]
    return (
        f"{options.method}: training {trained_:,} of {total:,} parameters ({trained_ / total:.2%}) of {options.model}\n"
        f"on {len(rows):,} rows of {rows.source}, evaluating on {len(held_out):,} rows of {held_out.source}"
    )


def _arguments(options: TrainOptions, folder: Path, devices: int) -> TrainingArguments:
    share, left = divmod(options.batch_size, devices * options.gradient_accumulation)
    if left:
        raise ConfigError(
            f"batch_size={options.batch_size} cannot be shared by {devices} devices in {options.gradient_accumulation} parts; "
            f"make it a multiple of {devices * options.gradient_accumulation}."
        )
    saving: dict[str, Any] = {"save_strategy": "epoch"}
    if options.save_steps:
        saving = {"save_strategy": "steps", "save_steps": options.save_steps}
    return TrainingArguments(
        output_dir=str(folder / runs.CHECKPOINTS),
        per_device_train_batch_size=share,
        per_device_eval_batch_size=options.eval_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.peak_learning_rate,
        num_train_epochs=options.epochs,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_ratio,  # below 1 it is a share of the steps
        eval_strategy="epoch",
        save_total_limit=2,  # the best and the last; with 1, Trainer deletes the last when training ends
        load_best_model_at_end=options.best_epoch,
        metric_for_best_model=metric_name(options),
        greater_is_better=True,
        logging_steps=10,
        bf16=options.bf16,
        seed=options.seed,
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        **saving,
    )


def _run_trainer(
    options: TrainOptions,
    folder: Path,
    encoder: models.Encoder,
    datasets: list[list[dict[str, Any]]],
    checkpoint: Path | None,
    console: Console,
    further: Sequence[TrainerCallback],
) -> Trainer:
    stop, bar = StopOnInterrupt(), ProgressBar(console, metric_name(options))
    writer = SummaryWriter(str(folder / runs.LOGS))
    callbacks = [stop, bar, TensorBoardCallback(writer), *further]  # type: ignore[no-untyped-call]
    if options.patience:
        callbacks.append(EarlyStoppingCallback(options.patience))
    common: dict[str, Any] = {
        "model": encoder.model,
        "args": _arguments(options, folder, processes().num_processes),
        "train_dataset": datasets[0],
        "eval_dataset": datasets[1],
        "data_collator": DataCollatorWithPadding(encoder.tokenizer),
        "compute_metrics": lambda output: dict(metrics.of_logits(_logits(output.predictions), output.label_ids)),
        "callbacks": callbacks,
    }
    if options.method == "lora":
        metadata = {"base_model_name_or_path": options.model or "", "task_type": TASK_TYPE}
        trainer: Trainer = AdapterTrainer(**common, metadata=metadata)
    else:
        trainer = Trainer(**common)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.close()
        stop.release()
        writer.close()
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
    return trainer


def _logits(predictions: Any) -> Any:
    """The scores of a model that may also return hidden states."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def _outcome(options: TrainOptions, history: list[dict[str, float]]) -> dict[str, Any]:
    """What was trained and how good the epoch that was kept is."""
    metric = metric_name(options)
    evaluations = [row for row in history if "eval_loss" in row]
    kept = max(evaluations, key=lambda row: row[f"eval_{metric}"]) if options.best_epoch else evaluations[-1]
    names = (*metrics.CLASSIFICATION, *metrics.REGRESSION, "loss")
    return {
        "method": options.method,
        "metric": metric,
        "value": kept[f"eval_{metric}"],
        "metrics": {name: kept[f"eval_{name}"] for name in names if f"eval_{name}" in kept},
        "best_epoch": kept["epoch"],
    }


def _write(options: TrainOptions, folder: Path, encoder: models.Encoder, trainer: Trainer, results: dict[str, Any]) -> None:
    if isinstance(trainer, AdapterTrainer):
        formats.save(trainer.adapter(), folder / runs.ADAPTER)
        results["saved_bytes"] = runs.size(folder / runs.ADAPTER)
        if options.save_merged:
            surgery.merge(encoder.model, keep=False)
            _save_model(encoder, folder / runs.MERGED)
    else:
        _save_model(encoder, folder / runs.MODEL)
        results["saved_bytes"] = runs.size(folder / runs.MODEL)
    title = f"{options.method}, {options.run_name.removesuffix('-' + options.method)}"
    report.learning_curve(folder / runs.CURVE, results["history"], results["metric"], title)
    runs.write_metrics(folder, results)


def _save_model(encoder: models.Encoder, folder: Path) -> None:
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
