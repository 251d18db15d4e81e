"""What a person sees of a study: a table, sentences that claim no more than the spread allows, and a figure."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from ..train.rich_text import plain
from . import figures
from .grid import Outcome
from .studies import PLOTS, Cell, Study
from .task import goodness

_SEED = "one seed has no spread, so no difference is claimed"


@dataclass(frozen=True)
class Line:
    """A cell of a study, and what it came to."""

    cell: Cell
    outcome: Outcome

    @property
    def loss(self) -> float:
        """The mean loss on the evaluation rows, of the epochs that were kept."""
        return statistics.fmean(self.outcome.losses)

    @property
    def score(self) -> str:
        """The metric with its spread."""
        spread = f" ± {self.outcome.spread:.4f}" if len(self.outcome.results) > 1 else ""
        return f"{self.outcome.mean:.4f}{spread}"


def table(lines: Sequence[Line], title: str) -> Table:
    """A line a cell: what is varied, LoRA's and all trained parameters, the metric (mean ± standard deviation over the seeds),
    the loss on the evaluation rows, and the median time."""
    made, first = Table(title=plain(title)), lines[0]
    for heading in first.cell.varied:
        made.add_column(heading, overflow="fold", justify="left" if heading in ("matrices", "rule", "method") else "right")
    for heading in ("LoRA", "trained", first.outcome.metric, "loss", "time"):
        made.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        results = line.outcome.results
        made.add_row(
            *(plain(f"{value:,}" if isinstance(value, int) else str(value)) for value in line.cell.varied.values()),
            f"{results[0]['parameters']['lora']:,}",
            f"{line.outcome.trained:,}",
            line.score,
            f"{line.loss:.4f}",
            f"{statistics.median(run['train_seconds'] for run in results):.0f} s",
        )
    return made


def rows(study: Study, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """A row a run, for a CSV file."""
    return [
        {
            "study": study,
            **line.cell.varied,
            "seed": run["seed"],
            "metric": line.outcome.metric,
            "value": round(value, 4),
            "scored_on": line.outcome.scored_on,
            "eval_loss": round(run["metrics"]["loss"], 4),
            "kept_epoch": run["kept_epoch"],
            **{name: run["parameters"][name] for name in ("lora", "trained", "total")},
            **{name: run[name] for name in ("train_rows", "eval_rows", "test_rows", "steps", "learning_rate")},
            "train_seconds": round(run["train_seconds"]),
            "folder": f"{line.cell.name}/seed-{run['seed']}",
        }
        for line in lines
        for run, value in zip(line.outcome.results, line.outcome.values, strict=True)
    ]


def findings(study: Study, lines: Sequence[Line]) -> list[str]:
    """What the study shows, in sentences: the best cell, those within the spread of it, and those behind by more.

    A study of rows has such a sentence for each number of rows. Two means differ by more than the spread when their distance
    exceeds √(s₁² + s₂²), s: the standard deviations over the seeds.
    """
    if study != "rows":
        return [_finding(lines, lambda line: line.cell.title)]
    groups = groupby(lines, key=lambda line: line.cell.varied["rows"])
    sentences = ((number, _finding(list(group), lambda line: line.cell.varied["method"])) for number, group in groups)
    return [f"{number if number == 'all' else format(number, ',')} rows: {sentence}" for number, sentence in sentences]


def _finding(lines: Sequence[Line], name: Callable[[Line], str]) -> str:
    metric = lines[0].outcome.metric
    best, *others = sorted(lines, key=lambda line: -goodness(metric, line.outcome.mean))
    said = f"{name(best)} is best by {metric}, {best.score}"
    if not others:
        return f"{said}."
    if len(best.outcome.results) < 2:
        return f"{said}; {_SEED}."
    near = [line for line in others if within_spread(best.outcome, line.outcome)]
    far = [line for line in others if line not in near]
    parts = [said]
    if near:
        parts.append(f"within the spread of it: {', '.join(map(name, near))}")
    if far:
        behind = (f"{name(line)} (by {abs(best.outcome.mean - line.outcome.mean):.4f})" for line in far)
        parts.append(f"behind it by more than the spread: {', '.join(behind)}")
    return "; ".join(parts) + "."


def within_spread(a: Outcome, b: Outcome) -> bool:
    """Whether two means are at most √(s₁² + s₂²) apart."""
    return abs(a.mean - b.mean) <= math.hypot(a.spread, b.spread)


def plot(folder: Path, study: Study, lines: Sequence[Line], title: str) -> list[Path]:
    """Draw the metric and the loss on the evaluation rows, with the spread of the seeds, as PNG and SVG in `folder`;
    returns their paths."""
    paths = [folder / name for name in PLOTS]
    metric = lines[0].outcome.metric
    with figures.two_plots(paths[0], title, also=paths[1:]) as (scores, losses):
        for axes, values, label in (
            (scores, lambda line: line.outcome.values, f"{metric} ({lines[0].outcome.scored_on} rows)"),
            (losses, lambda line: line.outcome.losses, "loss (evaluation rows)"),
        ):
            if study == "matrices":
                _points(axes, lines, values, label)
            else:
                _curves(axes, study, lines, values, label)
        if study == "matrices":
            losses.tick_params(labelleft=False)
    return paths


def _points(axes: Any, lines: Sequence[Line], values: Any, label: str) -> None:
    """A point a cell with its whisker, the first on top."""
    for i, line in enumerate(lines):
        found = values(line)
        axes.errorbar(statistics.fmean(found), -i, xerr=_deviation(found), fmt="o", capsize=4, color=figures.BLUE)
    axes.set_yticks([-i for i in range(len(lines))], [line.cell.title for line in lines], parse_math=False)
    axes.set(xlabel=label)
    axes.margins(0.1)


def _curves(axes: Any, study: Study, lines: Sequence[Line], values: Any, label: str) -> None:
    """A curve over ranks for each set of matrices and rule, or over numbers of rows for each method."""
    for i, (name, cells) in enumerate(curves(study, lines).items()):
        colour = figures.METHOD_COLOURS[name] if study == "rows" else figures.COLOURS[i % len(figures.COLOURS)]
        found = {place(line): values(line) for line in cells}
        means, spreads = [statistics.fmean(v) for v in found.values()], [_deviation(v) for v in found.values()]
        axes.errorbar(list(found), means, spreads, marker="o", capsize=4, color=colour, label=name)
    ticks = sorted(set(map(place, lines)))
    axes.set_xscale("log", base=2 if study == "rank" else 10)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="r" if study == "rank" else "training rows", ylabel=label)


def curves(study: Study, lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The cells of each curve, in order: a method's over numbers of rows, those of a set of matrices and a rule over ranks (a
    cell that is the same under both rules is on both curves); of other studies all cells together."""
    if study == "matrices":
        return {"": list(lines)}
    rules = [rule for rule in dict.fromkeys(line.cell.varied.get("rule") for line in lines) if rule != "both"] or ["both"]
    found: dict[str, list[Line]] = {}
    for line in sorted(lines, key=place):
        varied = line.cell.varied
        if study == "rows":
            names = [varied["method"]]
        else:
            names = [f"{varied['matrices']}, {rule}" for rule in rules if varied["rule"] in (rule, "both")]
        for name in names:
            found.setdefault(name, []).append(line)
    return found


def place(line: Line) -> int:
    """Where a cell is on its curve: its rank, or the number of its training rows."""
    rank: int | None = line.cell.varied.get("r")
    return int(line.outcome.results[0]["train_rows"]) if rank is None else rank


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
