"""Figures of runs: one palette, legends outside, whole epochs as ticks, and the epoch that was kept."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogFormatter, MaxNLocator

BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE, GREY = (  # Okabe and Ito's, which the colour-blind can tell apart
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#56B4E9",
    "#D55E00",
    "#CC79A7",
    "#999999",
)
_LINE = 0.22  # inches of a line of text under the plots
_WIDEST = 130  # characters of a line of text under the plots
_LEGEND = 120  # characters of a line of the legend, with its signs
_SPREAD = 5  # times that perplexities differ when they are drawn on a logarithmic scale
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, GREY)  # of things without an order, one after the other
SEQUENTIAL = ("#0b1e33", BLUE, SKY, "#fff6d6")  # from little to much; lighter and lighter
METHOD_COLOURS = {"lora": BLUE, "last-layers": ORANGE, "full": GREEN, "bitfit": VERMILION, "prefix": PURPLE}


def write(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as a PNG or an SVG, as the path says. Characters that the font lacks, of file names for instance, become
    boxes without a warning."""
    undated = {"Date": None} if path.suffix == ".svg" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(path, dpi=dpi, metadata=undated)


@contextmanager
def two_plots(path: Path, title: str, below: Sequence[str] = (), also: Sequence[Path] = ()) -> Iterator[tuple[Axes, Axes]]:
    """A figure of two plots side by side, which is written to `path` as a PNG after the block.

    What has a label is explained below the plots; below: lines of text under them. also: more files to write it to, each in the
    format that its name says.
    """
    whole = Figure(figsize=(9, 3.9 + _LINE * len(below)), layout="constrained")
    figure: Figure | SubFigure = whole
    if below:  # apart from the legend, which would lie on the text
        parts: Any = whole.subfigures(2, height_ratios=(3.9, _LINE * len(below)))
        _write_lines(parts[1], below)
        figure = parts[0]
    left, right = figure.subplots(1, 2)
    yield left, right
    labelled: dict[str, Any] = {}
    for axes in (left, right):
        axes.grid(alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    if labelled:
        columns = max(1, _LEGEND // (max(map(len, labelled)) + 6))
        figure.legend(list(labelled.values()), list(labelled), loc="outside lower center", ncols=min(columns, len(labelled)))
    figure.suptitle(title, parse_math=False)
    write(whole, path)
    for other in also:
        write(whole, other)


def _write_lines(figure: SubFigure, lines: Sequence[str]) -> None:
    """Write lines of text, each cut to the width."""
    for number, line in enumerate(" ".join(line.split()) for line in lines):
        shown = line if len(line) <= _WIDEST else line[: _WIDEST - 1] + "…"
        figure.text(0.02, 1 - (number + 0.5) / len(lines), shown, va="center", fontsize=8, parse_math=False)


def plot(axes: Axes, history: Sequence[Mapping[str, float]], key: str, **style: Any) -> None:
    """Draw a value of Trainer's log over the epochs, where it was logged and is finite."""
    points = _points(history, key)
    if points:
        axes.plot(*zip(*points, strict=True), **style)
    last = max((row["epoch"] for row in history), default=1.0)
    axes.set(xlabel="epoch", xlim=(0, max(axes.get_xlim()[1], 1.03 * last)))
    if last >= 1:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _points(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """Epoch and value, where it was logged and is finite."""
    return [(row["epoch"], row[key]) for row in history if key in row and math.isfinite(row[key])]


def mark_kept(axes: Axes, history: Sequence[Mapping[str, float]], key: str, epoch: float, colour: str) -> None:
    """Draw a star where the epoch that was kept has its value."""
    if (kept := dict(_points(history, key)).get(epoch)) is not None:
        style: dict[str, Any] = {"markersize": 13, "markerfacecolor": colour, "markeredgecolor": "white", "zorder": 3}
        axes.plot([epoch], [kept], "*", label="epoch kept", **style)


def learning_curve(
    path: Path,
    history: Sequence[dict[str, float]],
    metric: str,
    kept_epoch: float,
    title: str,
    below: Sequence[str] = (),
) -> None:
    """Draw training and evaluation loss and the metric over epochs, as a PNG, with a star at the epoch that was kept.

    below: lines of text under the plots, each cut to the figure's width.
    """
    with two_plots(path, title, below) as (losses, metrics):
        plot(losses, history, "loss", label="training loss", color=GREY)
        plot(losses, history, "eval_loss", label="evaluation loss", color=BLUE, marker="o")
        plot(metrics, history, f"eval_{metric}", label=metric, color=BLUE, marker="o")
        mark_kept(losses, history, "eval_loss", kept_epoch, BLUE)
        mark_kept(metrics, history, f"eval_{metric}", kept_epoch, BLUE)
        highest = max((value for key in ("loss", "eval_loss") for _, value in _points(history, key)), default=1.0)
        losses.set(ylabel="loss", ylim=(0, 1.08 * highest or 1.0))
        metrics.set(ylabel=metric)
        values = [value for _, value in _points(history, f"eval_{metric}")]
        if metric == "perplexity" and min(values, default=0) > 0 and max(values) > _SPREAD * min(values):
            metrics.set_yscale("log")
            plain = LogFormatter(minor_thresholds=(2, 0.4))  # 400, not a power of ten
            metrics.yaxis.set_major_formatter(plain)
            metrics.yaxis.set_minor_formatter(plain)
