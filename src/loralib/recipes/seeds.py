"""The same run with several seeds: their median and spread, as the paper reports.

FOLDER/seeds.yaml         how many seeds, and the options of all
FOLDER/seed-0/ …          a run folder each
FOLDER/summary.json       what came out
"""

import json
import re
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from transformers import TrainerCallback

from ..errors import LoRAError, RunError
from ..storage.atomic import write_atomically
from ..train.trainer import last_whole_checkpoint
from . import run_folder, training
from .options import TrainOptions
from .run import train

SEEDS, SUMMARY = run_folder.SEEDS, "summary.json"


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

    overwrite: replace what earlier seeds wrote to `folder`. resume: keep the seeds that are finished, and go on with the rest.
    Raises as `train`; after Ctrl-C a `KeyboardInterrupt` that says how to go on.
    """
    if seeds < 1:
        raise RunError(f"--seeds {seeds}: must be positive.")
    processes = training.processes()
    main = processes.is_main_process
    if main:
        check_free(folder, overwrite, resume)
        if overwrite:
            clear(folder)
    processes.wait_for_everyone()
    results = []
    for seed in range(options.seed, options.seed + seeds):
        chosen, run = replace(options, seed=seed), folder / f"seed-{seed}"
        if (run / run_folder.METRICS).is_file():
            results.append(json.loads((run / run_folder.METRICS).read_text(encoding="utf-8")))
            continue
        go_on = last_whole_checkpoint(run / run_folder.CHECKPOINTS) is not None
        how: dict[str, Any] = {"resume": go_on, "overwrite": not go_on, "console": console, "callbacks": callbacks}
        fresh = not folder.exists()
        try:
            if main:
                write_seeds(folder, options, seeds)
            results.append(train(chosen, run, **how))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted at seed {seed}; what is finished is kept. Go on with: loralib train --output {folder} --resume"
            ) from None
        except LoRAError:
            if fresh and main:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    if main:
        write_atomically(folder / SUMMARY, (json.dumps(summary(results), indent=2) + "\n").encode())
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
    found = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("seed-*/metrics.json")}
    return max(found, key=lambda run: training.goodness(found[run]["metric"], found[run]["value"]), default=None)


def check_free(folder: Path, overwrite: bool, resume: bool) -> None:
    """`RunError` unless seeds may be trained into `folder`: it is new or empty, or may be overwritten or gone on with."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give another --output.")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = {name for name in names if name not in (SEEDS, SUMMARY) and not re.fullmatch(r"seed-\d+", name)}
    if foreign and overwrite:
        raise RunError(f"{folder} holds what no seeds wrote ({', '.join(sorted(foreign)[:3])}); give another --output.")
    if names and not overwrite and not resume:
        raise RunError(f"{folder} exists and is not empty; add --resume to go on with it, or --overwrite to replace it.")


def clear(folder: Path) -> None:
    """Remove what earlier seeds wrote to `folder`."""
    for run in folder.glob("seed-*"):
        run_folder.clear(run)
        if not any(run.iterdir()):
            run.rmdir()
    for name in (SEEDS, SUMMARY):
        (folder / name).unlink(missing_ok=True)


def write_seeds(folder: Path, options: TrainOptions, seeds: int) -> None:
    """Write down what is being trained."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"seeds": seeds, "options": options.to_dict()}, sort_keys=False)
    write_atomically(folder / SEEDS, text.encode())


def read_seeds(folder: Path) -> tuple[TrainOptions, int]:
    """The options and the number of seeds that `folder` was begun with; `RunError` when they cannot be read."""
    try:
        stored = yaml.safe_load((folder / SEEDS).read_text(encoding="utf-8"))
        return TrainOptions(**stored["options"]), int(stored["seeds"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, LoRAError) as error:
        raise RunError(f"{folder / SEEDS} is damaged ({' '.join(str(error).split())}); train again with --overwrite.") from None
