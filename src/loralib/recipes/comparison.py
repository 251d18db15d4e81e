"""LoRA, last layers and full fine-tuning side by side under one budget of rows and epochs.

Each run is a process of its own (`loralib train`), so that its peak memory is its own.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..errors import RunError
from ..storage.atomic import write_atomically
from ..train.checkpoints import last_whole_checkpoint
from . import grid, run_folder
from .apart import INTERRUPTED, wait_for
from .options import TrainOptions
from .resolved import resolved
from .task import COMPARED, Method


class Outcome(grid.Outcome):
    """What one method came to."""

    @property
    def method(self) -> Method:
        """The method."""
        return cast(Method, self.name)


def compare(
    options: Mapping[str, Any],
    own: Mapping[Method, Mapping[str, Any]],
    folder: Path,
    methods: Sequence[Method] = COMPARED,
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
    cells: dict[str, TrainOptions] = {method: grid.of_method(options, method, own.get(method, {})) for method in methods}
    outcomes = grid.train_grid(cells, folder, seeds, apart(resume, keep_weights))
    return [Outcome(outcome.name, outcome.results) for outcome in outcomes]


def apart(resume: bool = False, keep_weights: bool = True) -> grid.Train:
    """How a grid trains one run in a process of its own: `train_apart` with these."""
    return lambda options, run: train_apart(options, run, resume, keep_weights)


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
