"""One run, from its options to its run folder: the same for every kind of task."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import Trainer, TrainerCallback

from .. import __version__, formats
from ..errors import RunError
from ..surgery.merge import merge
from ..train import devices, measure
from ..train.checkpoints import last_whole_checkpoint
from ..train.prefix import PrefixTrainer, save_prefix
from ..train.quiet import quiet_transformers, same_environment
from ..train.rich_text import say
from ..train.trainer import AdapterTrainer, write_errors_named
from . import figures, quantizing, run_folder, training
from .options import TrainOptions
from .plan import Plan, implementation
from .records import source
from .task import goodness


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C; `checkpoint` is where it can go on from, or None."""

    def __init__(self, folder: Path, checkpoint: Path | None):
        super().__init__(folder, checkpoint)
        self.folder, self.checkpoint = folder, checkpoint


@quiet_transformers()
@same_environment()
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

    overwrite: replace the run that is in `folder`, which is removed when this one is whole, and put back when this one fails
    before its first checkpoint. resume: go on from its last whole checkpoint. console: where progress is
    shown (standard error). callbacks: further ones for Trainer.
    Everything that can be wrong with the words is found before anything is written. Raises `RunError`, `DataError`,
    `ConfigError` or `TargetError` then, `RunError` too while another process writes the folder, `Interrupted` after Ctrl-C,
    and `OSError` with the path when writing fails.
    """
    processes = devices.processes()
    console = console or Console(stderr=True, quiet=not processes.is_main_process)
    with run_folder.RUN.alone_in(folder) if processes.is_main_process else nullcontext():
        return _train(options, folder, overwrite=overwrite, resume=resume, console=console, callbacks=callbacks)


def _train(
    options: TrainOptions,
    folder: Path,
    *,
    overwrite: bool,
    resume: bool,
    console: Console,
    callbacks: Sequence[TrainerCallback],
) -> dict[str, Any]:
    """`train`, in a folder that no other process writes."""
    processes = devices.processes()
    if processes.is_main_process:
        run_folder.RUN.check_free(folder, overwrite, resume)
    checkpoint = _checkpoint_to_resume(folder) if resume else None
    begun, labels = run_folder.read_options(folder) if resume else (options, None)
    options = options.settled_as(begun)
    kind = implementation(options)
    data = kind.read_rows(options)
    training.arguments(options, folder, len(data[0]))
    transformers.set_seed(options.seed)
    planned = kind.plan(options, data)
    options, found = training.with_kernel(options.updated(planned.settled), planned.model)
    if resume and labels != planned.labels:
        raise RunError(f"the data has other classes than the run in {folder} began with ({labels}); restore the data.")
    parameters = (planned.count or measure.count_parameters)(planned.model)
    say(console, *_opening(options, planned, parameters), *found)
    if options.bf16 and measure.emulates_bf16():
        say(console, "this processor emulates bfloat16, ten times as slow as float32; leave --bf16 out")
    watching = [planned.watch(console, folder)] if planned.watch else []
    how: dict[str, Any] = {"checkpoint": checkpoint, "console": console, "callbacks": [*watching, *callbacks]}
    began = time.perf_counter()
    try:
        with write_errors_named(folder):
            if processes.is_main_process and not resume:
                run_folder.RUN.begin(folder)
                run_folder.write_options(folder, options, planned.labels)
            processes.wait_for_everyone()
            trainer = training.run_trainer(options, folder, planned, **how)
            seconds = time.perf_counter() - began
            results = _results(options, planned, trainer, seconds) | {"parameters": parameters, "resumed": resume}
            if len(data) > 2:
                results["test"] = training.score(trainer, options.task_kind.metrics, planned.datasets[2])
            if processes.is_main_process:
                _write(options, folder, planned, trainer, results)
    except BaseException as error:
        last = last_whole_checkpoint(folder / run_folder.CHECKPOINTS)
        if last is None and processes.is_main_process:
            run_folder.RUN.give_up(folder)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(folder, last) from None
        raise
    if processes.is_main_process:
        run_folder.RUN.finish(folder)
    processes.wait_for_everyone()
    return results


def _checkpoint_to_resume(folder: Path) -> Path:
    if not (folder / run_folder.CONFIG).is_file():
        raise RunError(f"{folder} holds no run to resume ({run_folder.CONFIG} is missing); leave out --resume to begin one.")
    if (folder / run_folder.METRICS).is_file():
        raise RunError(f"the run in {folder} is finished; there is nothing to resume.")
    checkpoint = last_whole_checkpoint(folder / run_folder.CHECKPOINTS)
    if checkpoint is None:
        raise RunError(f"the run in {folder} has no whole checkpoint to resume from; use --overwrite to begin again.")
    return checkpoint


def _opening(options: TrainOptions, planned: Plan, parameters: dict[str, int]) -> list[str]:
    rows, held_out, *test = planned.data
    every, share = measure.everything(parameters), measure.share(parameters)
    tested = "".join(f", and once, at the end, on {len(part):,} rows of {source(part)}" for part in test)
    return [
        f"{options.method}: training {parameters['trained']:,} of {every:,} parameters ({share:.2%}) of {options.model}",
        f"on {len(rows):,} rows of {source(rows)}, evaluating on {len(held_out):,} rows of {source(held_out)}{tested}",
        *([quantizing.said(planned.model, options.quantize)] if options.quantize else []),
        *([planned.bound.summary()] if planned.bound is not None else []),
        *planned.notes,
    ]


def _results(options: TrainOptions, planned: Plan, trainer: Trainer, seconds: float) -> dict[str, Any]:
    history = [row for row in trainer.state.log_history if "loss" in row or "eval_loss" in row]
    return {
        **_outcome(options, history),
        "seed": options.seed,
        "learning_rate": options.peak_learning_rate,
        **dict(zip(("train_rows", "eval_rows", "test_rows"), [*map(len, planned.data), 0], strict=False)),
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
    metric = options.metric
    evaluations = [row for row in history if "eval_loss" in row and row["step"]]
    kept = evaluations[-1]
    if options.best_epoch:
        kept = max(evaluations, key=lambda row: goodness(metric, row[f"eval_{metric}"]))
    return {
        "method": options.method,
        "metric": metric,
        "value": kept[f"eval_{metric}"],
        "metrics": {name: kept[f"eval_{name}"] for name in (*options.task_kind.metrics, "loss")},
        "kept_epoch": kept["epoch"],
    }


def _write(options: TrainOptions, folder: Path, planned: Plan, trainer: Trainer, results: dict[str, Any]) -> None:
    if isinstance(trainer, AdapterTrainer):
        formats.save(trainer.adapter(), folder / run_folder.ADAPTER)
        if options.save_merged:
            merge(planned.model, keep=False)
            _save_model(planned, folder / run_folder.MERGED)
    elif isinstance(trainer, PrefixTrainer):
        save_prefix(planned.model, folder / run_folder.ADAPTER)
    else:
        _save_model(planned, folder / run_folder.MODEL)
    part = run_folder.part_of(folder, options)
    if part.name == run_folder.ADAPTER and planned.task_type == "CAUSAL_LM":  # whose texts the chat template is a part of
        planned.tokenizer.save_pretrained(part)
    results["saved_bytes"] = run_folder.size(part)
    title = f"{options.method}, {options.data_name}"
    curve = results["history"], results["metric"], results["kept_epoch"]
    figures.learning_curve(folder / run_folder.CURVE, *curve, title, run_folder.before_and_after(folder))
    run_folder.write_metrics(folder, results)


def _save_model(planned: Plan, folder: Path) -> None:
    planned.model.save_pretrained(folder)
    planned.tokenizer.save_pretrained(folder)
