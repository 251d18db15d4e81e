"""What a person sees of a comparison and of the search before it: tables and a plot."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..train.rich_text import plain, say
from .comparison import Outcome
from .figures import METHOD_COLOURS, mark_kept, plot, two_plots
from .report import summary_table
from .search import Trial

_COSTS = ("train_seconds", "peak_memory_bytes", "saved_bytes")
_COPIED = ("train_rows", "eval_rows", "test_rows", "learning_rate", *_COSTS)


def comparison_table(outcomes: Sequence[Outcome], title: str | None = None) -> Table:
    """A line a method: trained parameters and their share, the metric (mean ± standard deviation of the seeds), the rest as
    medians."""
    lines = []
    for outcome in outcomes:
        medians = {key: statistics.median(run[key] for run in outcome.results) for key in _COSTS}
        spread = {"spread": outcome.spread} if len(outcome.results) > 1 else {}
        lines.append({**outcome.results[0], **medians, **spread, "value": outcome.mean})
    return summary_table(lines, title)


def comparison_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row a run, for a CSV file."""
    return [
        {
            "method": outcome.method,
            "seed": run["seed"],
            "metric": outcome.metric,
            "value": round(value, 4),
            "scored_on": outcome.scored_on,
            "kept_epoch": run["kept_epoch"],
            **{name: run["parameters"][name] for name in ("trained", "lora", "total")},
            **{name: run[name] for name in _COPIED},
            "train_seconds": round(run["train_seconds"]),
        }
        for outcome in outcomes
        for run, value in zip(outcome.results, outcome.values, strict=True)
    ]


def comparison_plot(path: Path, outcomes: Sequence[Outcome], title: str) -> None:
    """Draw the metric against the trained parameters, and over the epochs, as a PNG; a colour a method, a line a seed, and a
    star at the epoch that was kept."""
    metric = outcomes[0].metric
    with two_plots(path, title) as (sizes, epochs):
        for outcome in outcomes:
            trained, colour = outcome.trained, METHOD_COLOURS[outcome.method]
            style = dict[str, Any](color=colour, marker="o")
            sizes.errorbar(trained, outcome.mean, outcome.spread or None, capsize=4, label=outcome.method, **style)
            sizes.annotate(f"{outcome.mean:.3f}", (trained, outcome.mean), (6, 6), textcoords="offset points")
            for run in outcome.results:
                plot(epochs, run["history"], f"eval_{metric}", **style, alpha=0.7)
                mark_kept(epochs, run["history"], f"eval_{metric}", run["kept_epoch"], colour)
        sizes.set(xlabel="trained parameters", ylabel=f"{metric} ({outcomes[0].scored_on} rows)", xscale="log")
        sizes.margins(0.25)
        epochs.set(ylabel=f"{metric} (evaluation rows)")


def tell_trial(console: Console, trial: Trial) -> None:
    """Print one line about a trial that has just ended."""
    chosen = ", ".join(f"{name}={value}" for name, value in trial.values.items() if value is not None)
    say(console, f"{trial.score:.4f} on {trial.rows:,} rows: {chosen}")


def search_table(trials: Sequence[Trial], metric: str) -> Table:
    """A line a trial, best first: the configuration, the rows it was trained on, its metric and its parameters."""
    table = Table(title="search")
    for heading in ("r", "alpha", "layers", "head", "rate", "rows", metric, "trained"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("layers", "head") else "right")
    for trial in trials:
        values = trial.values
        table.add_row(
            str(values["r"]),
            f"{values['lora_alpha']:g}",
            plain(str(values["layers"] or values["target_modules"]).replace(",", ", ")),
            str(values["train_head"]),
            f"{values['learning_rate']:g}",
            f"{trial.rows:,}",
            f"{trial.score:.4f}",
            f"{trial.trained:,}",
        )
    return table
