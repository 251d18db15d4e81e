"""A search for LoRA's hyper-parameters by successive halving (Jamieson & Talwalkar 2015, 1502.07943).

n configurations are trained on few rows, the best 1/η of them on η times as many, and so on, until one is left:

    rung   0        1        …   k            configurations  n, n/η, …, η        rows  N/η^k', …, N/η

All are judged on a held-out share of the training rows; the evaluation rows of the comparison are not looked at.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from . import grid
from .comparison import apart
from .options import HELD_OUT, TrainOptions
from .plan import implementation
from .search_space import Space
from .task import goodness

LEAST_ROWS = 64


@dataclass(frozen=True)
class Trial:
    """One configuration, trained on so many rows: its values, its metric on the held-out rows, and what was trained."""

    rung: int
    rows: int
    values: Mapping[str, Any]
    score: float
    trained: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The trial as one row of a table."""
        own = {"rung": self.rung, "rows": self.rows, "score": round(self.score, 4), "trained": self.trained}
        return {**own, "seconds": round(self.seconds), **self.values}


def rungs(n: int, rows: int, eta: int, least: int = LEAST_ROWS) -> list[tuple[int, int]]:
    """How many configurations are trained on how many rows, rung by rung, until the best is known.

    The last rung has `rows` / eta of them, and none fewer than `least` (or all, where there are not so many).

    >>> rungs(9, 5000, 3)
    [(9, 555), (3, 1666)]
    """
    counts = [n]
    while counts[-1] > eta:
        counts.append(math.ceil(counts[-1] / eta))
    budgets = [max(min(least, rows), rows // eta ** (len(counts) - i)) for i in range(len(counts))]
    return list(zip(counts, budgets, strict=True))


def halve(
    candidates: Sequence[Mapping[str, Any]],
    schedule: Sequence[tuple[int, int]],
    train: Callable[[int, int, Mapping[str, Any]], Trial],
    metric: str = "accuracy",
) -> list[Trial]:
    """All trials, the best of the last rung first. train: (rung, rows, values) to a trial, whose score is a `metric`.

    Ties go to fewer parameters.
    """

    def order(trial: Trial) -> tuple[float, int]:
        return -goodness(metric, trial.score), trial.trained

    survivors: list[Mapping[str, Any]] = list(candidates)
    trials: list[Trial] = []
    for rung, (count, rows) in enumerate(schedule):
        ranked = sorted((train(rung, rows, values) for values in survivors[:count]), key=order)
        survivors, trials = [trial.values for trial in ranked], ranked + trials
    return trials


def search(
    options: TrainOptions,
    space: Space,
    folder: Path,
    *,
    n: int = 9,
    eta: int = 3,
    resume: bool = False,
    on_progress: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Look for the best LoRA configuration of `options`, whose own values are the first candidate; all trials, best first.

    folder: gets a run folder a trial, without weights. on_progress: called with each trial. Raises `ConfigError` and
    `DataError` for words and data that cannot work, before anything is trained, and `RunError` when a trial fails.
    """
    if n < 2 or eta < 2:
        raise ConfigError(f"search={n}, eta={eta}: a search needs two candidates at least and a factor of two at least.")
    judged = held_out(options)
    rows = len(implementation(judged).read_rows(judged)[0] or ())
    own = options.flat()
    first = {name: own[name] for name in ("r", "lora_alpha", "target_modules", "train_head")} | {
        "layers": ",".join(options.roles) if own["target_modules"] is None else None,
        "learning_rate": options.peak_learning_rate,
    }
    candidates = [{"target_modules": None} | values for values in space.draw(n, options.seed, first)]
    for values in candidates:
        judged.updated(values)

    def train(rung: int, budget: int, values: Mapping[str, Any]) -> Trial:
        cell = {f"candidate-{candidates.index(dict(values))}": judged.updated({**values, "max_train_rows": budget})}
        (outcome,) = grid.train_grid(cell, folder / f"rung-{rung}", None, apart(resume, keep_weights=False))
        trial = Trial(rung, budget, values, outcome.mean, outcome.trained, outcome.results[0]["train_seconds"])
        on_progress(trial)
        return trial

    return halve(candidates, rungs(len(candidates), rows, eta), train, options.metric)


def held_out(options: TrainOptions) -> TrainOptions:
    """The same run, judged on a held-out share of its training rows alone."""
    unseen: dict[str, Any] = dict.fromkeys(("eval_data", "eval_split", "test_data", "test_split", "max_test_rows"))
    if options.task:
        unseen["max_test_rows"] = 0
    return replace(options, method="lora", eval_fraction=options.eval_fraction or HELD_OUT, **unseen)
