"""LoRA, last layers and full fine-tuning side by side under one budget of rows and epochs.

Each run is a process of its own (`loralib train`), so that its peak memory is its own.
"""

import json
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import RunError
from ..train.trainer import last_whole_checkpoint
from . import run_folder
from .options import NEED_FROZEN, NEED_LORA, Method, TrainOptions

INTERRUPTED = 130
METHODS: tuple[Method, ...] = ("lora", "last-layers", "full")
IDLE: Mapping[Method, tuple[str, ...]] = {
    "lora": (),
    "last-layers": NEED_LORA,
    "full": (*NEED_LORA, *NEED_FROZEN, "train_head"),
}


@dataclass(frozen=True)
class Outcome:
    """What one method came to: the `metrics.json` of its run_folder, a seed each."""

    method: Method
    results: tuple[dict[str, Any], ...]

    @property
    def metric(self) -> str:
        """The metric of the task."""
        return str(self.results[0]["metric"])

    @property
    def values(self) -> list[float]:
        """The metric of each run: on the test rows where there are some, else of the epoch that was kept."""
        return [run["test"][self.metric] if "test" in run else run["value"] for run in self.results]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds (of a sample); 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def trained(self) -> int:
        """How many parameters were trained."""
        return int(self.results[0]["parameters"]["trained"])

    @property
    def total(self) -> int:
        """How many parameters the base model has."""
        return int(self.results[0]["parameters"]["total"])


def compare(
    options: Mapping[str, Any],
    own: Mapping[Method, Mapping[str, Any]],
    folder: Path,
    methods: Sequence[Method] = METHODS,
    seeds: Sequence[int] | None = None,
    resume: bool = False,
    keep_weights: bool = True,
) -> list[Outcome]:
    """Train by each method (with each of the seeds), and return what came out, in the order of `methods`.

    options: as `TrainOptions`, the same for all (what only LoRA knows goes to LoRA alone). own: by method, what it has of its
    own, such as a learning rate. folder: gets one run folder for each method, or, where seeds are given, one for each seed in
    it. resume: keep runs that are there and finished with the same options, and go on with those interrupted.
    keep_weights: whether checkpoints and whole models stay when a run is done (adapters do).
    Raises `RunError` when a run fails; what is wrong has then been printed. Options that cannot work are refused before
    anything is trained.
    """
    planned: dict[Method, list[tuple[Path, TrainOptions]]] = {}
    for method in methods:
        shared = {name: value for name, value in options.items() if name not in IDLE[method]}
        chosen = TrainOptions(**{**shared, **own.get(method, {}), "method": method})
        planned[method] = [(folder / method, chosen)]
        if seeds is not None:
            planned[method] = [(folder / method / f"seed-{seed}", replace(chosen, seed=seed)) for seed in seeds]
    outcomes = []
    for method, pairs in planned.items():
        results = []
        for run, chosen in pairs:
            results.append(train_apart(chosen, run, resume))
            if not keep_weights:
                drop_weights(run)
        outcomes.append(Outcome(method, tuple(results)))
    return outcomes


def train_apart(options: TrainOptions, run: Path, resume: bool = False) -> dict[str, Any]:
    """Train in a process of its own, into the run folder `run`, and return what its `metrics.json` holds.

    resume: keep the run that is there when it is finished and was told the same; go on with it when it was interrupted.
    Raises `RunError` when it fails, and `KeyboardInterrupt` when it was interrupted.
    """
    words = ["--overwrite"]
    if resume and _was_told_the_same(options, run):
        if (run / run_folder.METRICS).is_file():
            found: dict[str, Any] = json.loads((run / run_folder.METRICS).read_text())
            return found
        if last_whole_checkpoint(run / run_folder.CHECKPOINTS):
            words = ["--resume"]
    config = run.with_name(f"{run.name}.yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(options.to_dict() | {"output": str(run)}, sort_keys=False))
    code = _wait_for([sys.executable, "-m", "loralib", "train", "--config", str(config), *words])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise RunError(f"the run {run} ended with exit code {code}; its own message stands above.")
    trained: dict[str, Any] = json.loads((run / run_folder.METRICS).read_text())
    return trained


def _was_told_the_same(options: TrainOptions, run: Path) -> bool:
    if not (run / run_folder.CONFIG).is_file():
        return False
    wanted = options.with_absolute_paths().to_dict() | {"output": None}
    return run_folder.read_options(run)[0].to_dict() | {"output": None} == wanted


def drop_weights(run: Path) -> None:
    """Delete what of a finished run is large and not its result: checkpoints and models."""
    for name in (run_folder.CHECKPOINTS, run_folder.MODEL, run_folder.MERGED):
        shutil.rmtree(run / name, ignore_errors=True)


def _wait_for(words: Sequence[str]) -> int:
    """Run a process that gets Ctrl-C itself, and wait for it to end in its own way."""
    previous = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.run(words, check=False, stdout=subprocess.DEVNULL).returncode
    finally:
        signal.signal(signal.SIGINT, previous)
