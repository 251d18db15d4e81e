"""LoRA, last layers and full fine-tuning side by side under one budget of rows and epochs.

Each run is a process of its own (`loralib train`), so that its peak memory is its own.
"""

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..storage.atomic import write_atomically
from ..train.checkpoints import last_whole_checkpoint
from . import run_folder
from .apart import INTERRUPTED, wait_for
from .options import IDLE, TrainOptions
from .resolved import resolved
from .task import METHODS, Method


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
    planned: dict[Method, list[tuple[TrainOptions, Path]]] = {}
    for method in methods:
        shared = {name: value for name, value in options.items() if name not in IDLE[method]}
        chosen = TrainOptions.of({**shared, **own.get(method, {}), "method": method})
        run = folder / method
        planned[method] = [(chosen, run)] if seeds is None else run_folder.seed_runs(chosen, run, seeds)
    return [
        Outcome(method, tuple(train_apart(chosen, run, resume, keep_weights) for chosen, run in pairs))
        for method, pairs in planned.items()
    ]


def train_apart(options: TrainOptions, run: Path, resume: bool = False, keep_weights: bool = True) -> dict[str, Any]:
    """Train in a process of its own, into the run folder `run`, and return what its `metrics.json` holds.

    resume: keep the run that is there when it is finished and has the same options; go on with it when it was interrupted.
    keep_weights: as in `compare`. Raises `RunError` when it fails, and `KeyboardInterrupt` when it was interrupted.
    """
    same = resume and _has_options(run, options)
    found = run_folder.read_metrics(run) if same else None
    if found is None:
        go_on = same and last_whole_checkpoint(run / run_folder.CHECKPOINTS)
        config = run.with_name(f"{run.name}.yaml")
        config.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config, run_folder.as_yaml(resolved(options) | {"output": str(run)}))
        words = ["train", "--config", str(config), "--resume" if go_on else "--overwrite"]
        words += ["--trust-remote-code"] if options.trust_remote_code else []
        code = wait_for(words)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise RunError(f"the run {run} ended with exit code {code}; its own message stands above.")
        found = run_folder.read_metrics(run) or {}
    if not keep_weights:
        for name in (run_folder.CHECKPOINTS, run_folder.MODEL, run_folder.MERGED):
            shutil.rmtree(run / name, ignore_errors=True)
    return found


def _has_options(run: Path, options: TrainOptions) -> bool:
    if not (run / run_folder.CONFIG).is_file():
        return False
    stored, _ = run_folder.read_options(run)
    wanted = options.with_absolute_paths().settled_as(stored)
    return resolved(stored) | {"output": None} == resolved(wanted) | {"output": None}
