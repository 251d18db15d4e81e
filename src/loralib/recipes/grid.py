"""A grid of runs: cells, which are options, times seeds. They are trained one after another, and a grid that was stopped goes
on where it was.

FOLDER/CELL/              a run folder; with seeds, one for each of them: FOLDER/CELL/seed-N/
FOLDER/CELL.yaml          its options

How one run is trained is the caller's: see `comparison.apart`.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import run_folder
from .options import IDLE, TrainOptions
from .plan import check_packages
from .task import Method

Train = Callable[[TrainOptions, Path], dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What one cell came to: the `metrics.json` of its run folder, or of one for each seed."""

    name: str
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
    def losses(self) -> list[float]:
        """The loss on the evaluation rows of each run, in the epoch that was kept."""
        return [run["metrics"]["loss"] for run in self.results]

    @property
    def trained(self) -> int:
        """How many parameters were trained."""
        return int(self.results[0]["parameters"]["trained"])

    @property
    def scored_on(self) -> str:
        """Which rows the values are on: test or evaluation."""
        return "test" if "test" in self.results[0] else "evaluation"


def of_method(shared: Mapping[str, Any], method: Method, own: Mapping[str, Any]) -> TrainOptions:
    """The options of a run by `method`: the shared ones that act with it, and its own."""
    acting = {name: value for name, value in shared.items() if name not in IDLE[method]}
    return TrainOptions.of({**acting, **own, "method": method})


def train_grid(
    cells: Mapping[str, TrainOptions],
    folder: Path,
    seeds: Sequence[int] | None,
    train: Train,
    on_progress: Callable[[int, int, Path], None] = lambda number, count, run: None,
) -> list[Outcome]:
    """Train every cell, and return what came out, in their order.

    seeds: to train each cell with; None is the one of its options, and a run folder without a seed in its path. train: trains
    into a run folder, or keeps the run that is there. on_progress: called before each run with its number, from 1, with that of
    all, and with its folder. Raises `RunError` where a package is missing that some cell needs, before anything is trained.
    """
    for options in cells.values():
        check_packages(options)
    planned = {
        name: [(options, folder / name)] if seeds is None else run_folder.seed_runs(options, folder / name, seeds)
        for name, options in cells.items()
    }
    count, done = sum(map(len, planned.values())), 0
    outcomes = []
    for name, runs in planned.items():
        results = []
        for options, run in runs:
            done += 1
            on_progress(done, count, run)
            results.append(train(options, run))
        outcomes.append(Outcome(name, tuple(results)))
    return outcomes
