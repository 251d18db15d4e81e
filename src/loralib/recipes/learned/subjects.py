"""The adapters of a report: which they are, what they are called, and what is known of the runs that trained them."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from ...adapters.adapter import Adapter
from ...errors import ConfigError, RunError
from .. import run_folder
from ..options import TrainOptions


@dataclass(frozen=True)
class Run:
    """A finished run. metrics: what its `metrics.json` holds. samples: the rows of its `samples.jsonl`."""

    folder: Path
    options: TrainOptions
    metrics: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]] = ()
    configuration: str = ""

    @property
    def metric(self) -> str | None:
        """The metric that it was judged by."""
        return str(self.metrics["metric"]) if "metric" in self.metrics else None

    @property
    def value(self) -> float | None:
        """The metric of the epoch that was kept."""
        value = self.metrics.get("value")
        return float(value) if isinstance(value, int | float) else None

    @property
    def history(self) -> list[Mapping[str, float]]:
        """Trainer's log: rows of numbers, each with its epoch."""
        rows = self.metrics.get("history")
        known = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        numbers = [{name: value for name, value in row.items() if isinstance(value, int | float)} for row in known]
        return [row for row in numbers if "epoch" in row]


@dataclass(frozen=True)
class Subject:
    """An adapter of a report. name: what the report calls it, which is another one for each."""

    name: str
    path: Path
    adapter: Adapter
    run: Run | None = field(default=None)

    @property
    def seed(self) -> int | None:
        """The seed that its run began with, where that is known."""
        return self.run.options.seed if self.run else None

    @property
    def rank(self) -> str:
        """Its rank, or its ranks."""
        ranks = sorted({update.r for update in self.adapter.layers.values()})
        return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}" if ranks else "0"


def subjects(paths: Sequence[Path], adapters: Sequence[Adapter]) -> list[Subject]:
    """The adapters that were read from `paths`, with their runs, by names that differ.

    Raises `ConfigError` for an adapter without layers, and for one that is given twice; `RunError` for a damaged run.
    """
    _check(paths, adapters)
    runs = [run_of(path) for path in paths]
    made = [Subject("", *parts) for parts in zip(paths, adapters, runs, strict=True)]
    return [Subject(name, s.path, s.adapter, s.run) for name, s in zip(_names(made), made, strict=True)]


def _check(paths: Sequence[Path], adapters: Sequence[Adapter]) -> None:
    for path, adapter in zip(paths, adapters, strict=True):
        if not adapter.layers:
            raise ConfigError(f"{path} has no layers with an update, so there is nothing to analyze. Nothing was written.")
    by_digest: dict[str, Path] = {}
    for path, adapter in zip(paths, adapters, strict=True):
        other = by_digest.setdefault(adapter.digest(), path)
        if other is not path:
            twice = f"{path} is given twice" if _same(path, other) else f"{other} and {path} hold the same adapter"
            raise ConfigError(f"{twice}; give each adapter once. Nothing was written.")


def _same(one: Path, other: Path) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)


# --- runs -----------------------------------------------------------------------------------------------------------


def run_of(path: Path) -> Run | None:
    """The finished run that `path` is, or is the adapter of; None where there is none."""
    folder = next((place for place in (path, path.parent) if run_folder.holds_run(place)), None)
    if folder is None or not (folder / run_folder.METRICS).is_file():
        return None
    options, _ = run_folder.read_options(folder)
    try:
        metrics = run_folder.read_metrics(folder)
        samples = _samples(folder / run_folder.SAMPLES)
        configuration = (folder / run_folder.CONFIG).read_text(encoding="utf-8")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"the results of the run in {folder} cannot be read ({error}); restore them. Nothing was written."
        ) from None
    return Run(folder, options, metrics if isinstance(metrics, dict) else {}, samples, configuration)


def _samples(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a run's samples; none where there are none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:  # not splitlines, to which U+2028 in a text ends a line
        rows = [json.loads(line) for line in lines if line.strip()]
    return [row for row in rows if isinstance(row, dict)]


# --- names ----------------------------------------------------------------------------------------------------------


def _traits(subject: Subject) -> list[str]:
    """What can tell a run from others, in the order of a name."""
    if (run := subject.run) is None:
        return []
    options = run.options
    of_training = [f"rate {options.peak_learning_rate:g}", f"alpha {options.lora.lora_alpha:g}"]
    return [f"r {subject.rank}", f"seed {options.seed}", options.data_name, Path(str(options.model)).name, *of_training]


def _names(made: Sequence[Subject]) -> list[str]:
    """Names by the first things that the runs differ in, as many as tell them apart; else by their paths."""
    if len(made) > 1 and all(subject.run for subject in made):
        differing = [values for values in zip(*map(_traits, made), strict=True) if len(set(values)) > 1]
        for count in range(1, len(differing) + 1):
            names = [", ".join(parts) for parts in zip(*differing[:count], strict=True)]
            if _differ(names):
                return names
    return by_paths([subject.path for subject in made])


def by_paths(paths: Sequence[Path]) -> list[str]:
    """The ends of paths, as long as it takes for all to differ.

    >>> by_paths([Path("runs/a/adapter"), Path("runs/b/adapter"), Path("c")])
    ['a/adapter', 'b/adapter', 'c']
    """
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if _differ(names):
            return names if length == 1 else [_shortest(own, parts, length) for own in parts]
    return [str(path) for path in paths]


def _shortest(own: Sequence[str], parts: Sequence[Sequence[str]], length: int) -> str:
    """The shortest end of `own` that no other path has."""
    others = [other for other in parts if other is not own]
    fitting = (n for n in range(1, length) if all(tuple(other[-n:]) != tuple(own[-n:]) for other in others))
    return "/".join(own[-next(fitting, length) :])


def _differ(names: Iterable[str]) -> bool:
    names = list(names)
    return len(set(names)) == len(names)


def pairs(found: Sequence[Subject]) -> list[tuple[Subject, Subject]]:
    """Every two of the adapters, the one of lower rank first."""

    def most(subject: Subject) -> int:
        return max(update.r for update in subject.adapter.layers.values())

    return [(a, b) if most(a) <= most(b) else (b, a) for a, b in combinations(found, 2)]
