"""What was measured, for people: a table and a plot. Goals print themselves."""

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.table import Table

from benchmarks.goals import Benchmark
from benchmarks.harness import BEFORE, OURS, Row
from benchmarks.peers import LEGACY, PEFT
from loralib.recipes import figures
from loralib.recipes.report import human_bytes

HIDDEN = ("group", "case", "contender", "what", "saved_share", "peak_share", "rounds", "calls", "threads")
COLOURS = {LEGACY: figures.PURPLE, PEFT: figures.VERMILION, OURS: figures.BLUE}
HEADINGS = {
    "speedup": "time / ours",
    "milliseconds": "ms",
    "to_before": "time / before",
    "peak_to_before": "peak / before",
}
NOISE = 1.03  # a ratio to the earlier version up to this one is noise
PANELS, BAR = 3, 0.17  # panels side by side; inches that a bar is high
LETTERS = 14  # of the caption, an inch
HATCHES = ("", "///", "...", "xxx")  # of a contender's variants


def shown(name: str, value: Any) -> str:
    """A figure as the table shows it."""
    if value is None:
        return ""
    if name.endswith("_bytes"):
        return human_bytes(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}") if isinstance(value, float) else str(value)


def ranged(row: Row, name: str) -> str:
    """A figure with its quantiles, where the row has them."""
    text, low, high = shown(name, row[name]), row.get(f"{name}_20"), row.get(f"{name}_80")
    return text if low is None or low == high else f"{text}  ({shown(name, low)}-{shown(name, high)})"


def table(benchmark: Benchmark, rows: Sequence[Row], title: str) -> Table:
    """A line for every contender, with those figures that any of them has."""
    own = {*HIDDEN, *(field.name for field in fields(benchmark.smallest))}
    if rows[0]["contender"] == OURS:  # which the ratio is to
        own.add("speedup")
    names = [name for name in rows[0] if name not in own and not name.endswith(("_20", "_80"))]
    names = [name for name in names if any(row.get(name) not in (None, "") for row in rows)]
    result = Table("case", "contender", title=title)
    for name in names:
        heading = benchmark.axis if name == "ratio" else HEADINGS.get(name, name.replace("_", " "))
        result.add_column(heading, justify="left" if name == "note" else "right")
    for (group, case), lines in groupby(rows, key=lambda row: (row["group"], row["case"])):
        for i, row in enumerate(lines):
            figures = [ranged(row, name) if name in row else "" for name in names]
            result.add_row((group, case, "")[min(i, 2)], row["contender"], *figures)
        result.add_section()
    return result


def rounded(rows: Sequence[Row]) -> list[Row]:
    """The rows with five digits of every figure, which is more than any of them is worth."""
    return [{name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()} for row in rows]


def comparisons(rows: Sequence[Row]) -> dict[str, bool]:
    """A line for every contender of ours and its time over that of the earlier version; whether that is more than the noise."""
    found = {}
    for row in rows:
        title = ", ".join((row["group"], row["case"], *row["contender"].split(", ")[1:]))
        if row.get("to_before") is not None:
            low, high, peak = row["to_before_20"], row["to_before_80"], row["peak_to_before"]
            memory = "" if peak is None else f", peak memory {peak:.3f}"
            found[f"{row['to_before']:.3f}  ({low:.3f}-{high:.3f})  {title}{memory}"] = max(low, peak or 0) > NOISE
        elif row["contender"].startswith(BEFORE) and row["note"]:
            found[f"the earlier version fails: {row['note']}  {title}"] = False
    return found


def styles(contenders: Sequence[str]) -> dict[str, dict[str, str]]:
    """How the bars of each contender look: a colour a library, the same in all figures, and a hatch a variant."""
    variants: dict[str, list[str]] = {}
    for name in contenders:
        variants.setdefault(re.split(r", | \(", name)[0], []).append(name)
    return {
        name: {"facecolor": COLOURS.get(library, figures.GREY), "hatch": HATCHES[i], "edgecolor": "white"}
        for library, names in variants.items()
        for i, name in enumerate(names)
    }


def draw_panel(axes: Axes, benchmark: Benchmark, rows: Sequence[Row], look: dict[str, dict[str, str]]) -> None:
    """The cases of one group: a bar for each contender but the reference, with whiskers from the 20 % to the 80 % quantile."""
    name, ticks, labels, y = benchmark.figure, [], [], 0.0
    for case, lines in groupby(rows, key=lambda row: row["case"]):
        bars = [row for row in lines if row["contender"] in look]
        ticks.append(y + (len(bars) - 1) / 2)
        labels.append(case)
        for row in bars:
            if row[name] is not None:
                whiskers = [[max(0.0, row[name] - row[f"{name}_20"])], [max(0.0, row[f"{name}_80"] - row[name])]]
                axes.barh(y, row[name], height=0.9, **look[row["contender"]], xerr=whiskers, error_kw={"lw": 0.8})
            y += 1
        y += 0.6
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.axvline(benchmark.ideal, color="black", lw=0.8, ls="--")
    axes.set_title(rows[0]["group"], fontsize=9)
    axes.tick_params(axis="x", labelsize=8, labelbottom=True)
    axes.invert_yaxis()


def plot(benchmark: Benchmark, rows: Sequence[Row], path: Path, title: str) -> None:
    """A panel for every group of cases, as a PNG."""
    groups = [list(lines) for _, lines in groupby(rows, key=lambda row: row["group"])]
    contenders = [name for name in dict.fromkeys(row["contender"] for row in rows) if not name.startswith(BEFORE)]
    bars = contenders[1:] if benchmark.figure == "ratio" else contenders
    look = styles(bars)
    across, bands = min(PANELS, len(groups)), math.ceil(len(groups) / PANELS)
    highest = max(len(lines) for lines in groups) * BAR + 0.8
    width = 4.6 * across + 1.8 * (across == 1)
    figure = Figure(figsize=(width, highest * bands + 0.8), layout="constrained")
    grid = figure.subplots(bands, across, squeeze=False, sharex=True).flatten()
    for axes, lines in zip(grid, groups, strict=False):
        draw_panel(axes, benchmark, lines, look)
    for axes in grid[len(groups) :]:
        axes.remove()
    figure.legend(
        handles=[Patch(**style, label=name) for name, style in look.items()],
        loc="outside upper center",
        ncols=len(look),
        fontsize=8,
    )
    caption = [line for part in title.split("\n") for line in textwrap.wrap(part, round(LETTERS * width))]
    figure.supxlabel("\n".join([benchmark.axis, *caption]), fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figures.write(figure, path, dpi=110)
