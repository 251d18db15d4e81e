"""What a person sees at the end of runs: their table, and the curves of one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from ..printing import printable
from ..train.measure import share
from ..train.rich_text import plain


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


def summary_table(runs: Sequence[dict[str, Any]], title: str | None = None) -> Table:
    """Method, trained parameters and their share, metric, training time, peak memory and size on disk, a line a run.

    runs: what `metrics.json` holds; with "spread", that of the metric over several seeds.
    """
    table = Table(title=None if title is None else plain(title))
    for heading in ("method", "trained", "share", runs[0]["metric"], "time", "memory", "disk"):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for run in runs:
        counts = run["parameters"]
        table.add_row(
            run["method"],
            f"{counts['trained']:,}",
            human_share(share(counts)),
            f"{run['value']:.4f}" + (f" ± {run['spread']:.4f}" if "spread" in run else ""),
            f"{run['train_seconds']:.0f} s",
            human_bytes(run["peak_memory_bytes"]),
            human_bytes(run["saved_bytes"]),
        )
    return table


@contextmanager
def two_plots(path: Path, title: str) -> Iterator[tuple[Axes, Axes]]:
    """A figure of two plots side by side, which is written to `path` as a PNG after the block."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    yield left, right
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(printable(title), parse_math=False)
    figure.savefig(path, dpi=120)


def plot(axes: Axes, history: Sequence[dict[str, float]], key: str, **style: Any) -> None:
    """Draw a value of Trainer's log over the epochs, where it was logged."""
    points = [(row["epoch"], row[key]) for row in history if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
    axes.set(xlabel="epoch", xlim=(0, None))


def learning_curve(path: Path, history: Sequence[dict[str, float]], metric: str, title: str) -> None:
    """Draw training and evaluation loss and the metric over epochs, as a PNG."""
    with two_plots(path, title) as (losses, metrics):
        plot(losses, history, "loss", label="training")
        plot(losses, history, "eval_loss", label="evaluation", marker="o")
        plot(metrics, history, f"eval_{metric}", marker="o")
        losses.set(ylabel="loss", ylim=(0, None))
        losses.legend()
        metrics.set(ylabel=metric)
