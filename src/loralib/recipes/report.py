"""What a person sees at the end of runs: their table, and the curves of one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table


def human_bytes(size: float) -> str:
    """A size in the unit that fits it.

    >>> human_bytes(310_000), human_bytes(1_500_000_000)
    ('310 kB', '1.5 GB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            value = size / scale
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
    return f"{size:.0f} B"


def human_share(share: float) -> str:
    """A share in hundredths, small ones with the digits that they need.

    >>> human_share(1.0), human_share(0.0033), human_share(0.000034)
    ('100.00 %', '0.33 %', '0.003 %')
    """
    return f"{100 * share:.{2 if share >= 0.001 else 3}f} %"


def summary_row(metrics: dict[str, Any]) -> list[str]:
    """One run's line of the table, from its `metrics.json`."""
    counts = metrics["parameters"]
    return [
        metrics["method"],
        f"{counts['trained']:,}",
        human_share(counts["trained"] / counts["total"]),
        f"{metrics['value']:.4f}",
        f"{metrics['train_seconds']:.0f} s",
        human_bytes(metrics["peak_memory_bytes"]),
        human_bytes(metrics["saved_bytes"]),
    ]


def columns(metric: str) -> list[str]:
    """The table's headings."""
    return ["method", "trained", "share", metric, "time", "memory", "disk"]


def summary_table(runs: Sequence[dict[str, Any]], title: str | None = None) -> Table:
    """Method, trained parameters and their share, metric, training time, peak memory and size on disk, a line a run."""
    table = Table(title=title)
    for i, heading in enumerate(columns(runs[0]["metric"])):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for run in runs:
        table.add_row(*summary_row(run))
    return table


def learning_curve(path: Path, history: Sequence[dict[str, float]], metric: str, title: str) -> None:
    """Draw training and evaluation loss and the metric over epochs, as a PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    for axes, key, label in (
        (losses, "loss", "training"),
        (losses, "eval_loss", "evaluation"),
        (metrics, f"eval_{metric}", metric),
    ):
        points = [(row["epoch"], row[key]) for row in history if key in row]
        axes.plot(*zip(*points, strict=True), marker="o" if key != "loss" else None, label=label) if points else None
    losses.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    losses.legend()
    metrics.set(xlabel="epoch", ylabel=metric)
    for axes in (losses, metrics):
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
