"""The same run with several seeds: their median and spread, as the paper reports.

FOLDER/seeds.yaml         how many seeds, and the options of all
FOLDER/seed-0/ …          a run folder each
FOLDER/summary.json       what came out
"""

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from ..errors import RunError
from ..storage.atomic import write_atomically
from ..storage.json_text import as_json
from ..train import devices
from ..train.checkpoints import last_whole_checkpoint
from . import run_folder
from .options import TrainOptions
from .run import train
from .task import goodness


def train_seeds(
    options: TrainOptions,
    folder: Path,
    seeds: int,
    *,
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[dict[str, Any]]:
    """Train with the seeds `options.seed`, `options.seed` + 1, … into `folder`, and return what the runs' `metrics.json` hold.

    overwrite: replace what earlier seeds wrote to `folder`, once all are done. resume: keep the seeds that
    are finished, and go on with the rest.
    Raises as `train`; after Ctrl-C a `KeyboardInterrupt` that says how to go on.
    """
    if seeds < 1:
        raise RunError(f"--seeds {seeds}: must be positive.")
    with run_folder.MANY.alone_in(folder) if devices.processes().is_main_process else nullcontext():
        return _train_seeds(options, folder, seeds, overwrite=overwrite, resume=resume, console=console, callbacks=callbacks)


def _train_seeds(
    options: TrainOptions,
    folder: Path,
    seeds: int,
    *,
    overwrite: bool,
    resume: bool,
    console: Console | None,
    callbacks: Sequence[TrainerCallback],
) -> list[dict[str, Any]]:
    """`train_seeds`, in a folder that no other process writes."""
    processes = devices.processes()
    main = processes.is_main_process
    if main:
        run_folder.MANY.check_free(folder, overwrite, resume)
        if not resume:
            run_folder.MANY.begin(folder)
    processes.wait_for_everyone()
    results = []
    for chosen, run in run_folder.seed_runs(options, folder, range(options.seed, options.seed + seeds)):
        if found := run_folder.read_metrics(run):
            results.append(found)
            continue
        go_on = last_whole_checkpoint(run / run_folder.CHECKPOINTS) is not None
        how: dict[str, Any] = {"resume": go_on, "overwrite": not go_on, "console": console, "callbacks": callbacks}
        try:
            if main:
                run_folder.write_seeds(folder, options, seeds)
            results.append(train(chosen, run, **how))
        except BaseException as error:
            begun = run_folder.has_begun(folder)
            if main and not begun:
                run_folder.MANY.give_up(folder)
            if not isinstance(error, KeyboardInterrupt):
                raise
            if not begun:
                raise KeyboardInterrupt("interrupted before the first checkpoint; nothing new was kept.") from None
            again = f"loralib train --output {folder} --resume"
            message = f"interrupted at seed {chosen.seed}; what is finished is kept. Go on with: {again}"
            raise KeyboardInterrupt(message) from None
    if main:
        write_atomically(folder / run_folder.SUMMARY, (as_json(summary(results), indent=2) + "\n").encode())
        run_folder.MANY.finish(folder)
    return results


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median and the mean over the seeds, and their spread (the standard deviation of a sample; 0 for one)."""
    values = [run["value"] for run in results]
    return {
        "metric": results[0]["metric"],
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": {run["seed"]: run["value"] for run in results},
        "kept_epochs": {run["seed"]: run["kept_epoch"] for run in results},
        "parameters": results[0]["parameters"],
        "train_seconds": sum(run["train_seconds"] for run in results),
    }


def best_of(folder: Path) -> Path | None:
    """The run folder of the finished seed in `folder` with the best metric; None when none is finished."""
    found = {run: run_folder.read_metrics(run) or {} for run in run_folder.finished_seeds(folder)}
    return max(found, key=lambda run: goodness(found[run]["metric"], found[run]["value"]), default=None)
