"""The figure at the top of docs/performance.md: what a training step of a whole model costs, from the recorded results.

`python -m benchmarks whole_model --record` measures it; `python -m benchmarks.figures` draws it again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.harness import OURS
from benchmarks.peers import LEGACY, PEFT
from benchmarks.provenance import RESULTS
from loralib.recipes import figures

SOURCE = RESULTS / "whole_model.csv"
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "training_step.png"
STYLES: dict[str, dict[str, Any]] = {  # colours of one library are the same in all figures; shapes serve without colours
    LEGACY: {"marker": "s", "color": figures.PURPLE, "markersize": 7.5},
    PEFT: {"marker": "D", "color": figures.VERMILION, "markersize": 7},
    OURS: {"marker": "o", "color": figures.BLUE, "markersize": 9},
}
DTYPES = {"mixed": "bfloat16 base,\nfloat32 factors"}
STEP = 0.24  # between the lines of a model
TITLES = {0.0: "without dropout", 0.1: "with dropout 0.1"}


def label(row: Mapping[str, Any]) -> str:
    """The model and its dtypes."""
    return f"{row['shape']}, {DTYPES.get(row['dtype'], row['dtype'])}"


def draw(axes: Axes, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> None:
    """A group of lines for each model, one for each library; where a library fails, that is said."""
    for row in rows:
        y = labels.index(label(row)) + STEP * (list(STYLES).index(row["contender"]) - 1)
        style = STYLES[row["contender"]]
        if row["ratio"] is None:
            axes.annotate(
                f"{row['contender']} fails",
                (1, y),
                (8, 0),
                textcoords="offset points",
                va="center",
                color="#555555",
                fontsize=9,
            )
        else:
            axes.plot([1, row["ratio"]], [y, y], color=style["color"], lw=1.5, alpha=0.6, zorder=1)
            axes.plot(row["ratio"], y, ls="", markeredgecolor="white", **style)
    axes.axvline(1, color="black", lw=0.8, ls="--")
    axes.set_title(TITLES[rows[0]["p"]])
    axes.set_yticks(range(len(labels)), labels)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Two panels, without dropout and with it."""
    rows = [row for row in rows if row["contender"] in STYLES]
    labels = list(dict.fromkeys(map(label, rows)))
    figure = Figure(figsize=(7.6, 5), layout="constrained")
    panels = figure.subplots(1, len(TITLES), sharex=True, sharey=True)
    for axes, p in zip(panels, TITLES, strict=True):
        draw(axes, [row for row in rows if row["p"] == p], labels)
    panels[0].invert_yaxis()
    panels[0].set_xlim(0.98, None)
    legend = [
        Line2D([], [], ls="", markeredgecolor="white", label=name + " (here)" * (name == OURS), **style)
        for name, style in STYLES.items()
    ]
    figure.legend(handles=legend, loc="outside upper center", ncols=len(legend), frameon=False)
    machine = f"{rows[0]['device']}, torch {rows[0]['torch']}, loralib {rows[0]['commit']}"
    figure.supxlabel(f"time of a training step / time of the same model frozen (smaller is better)\n{machine}", fontsize=10)
    figures.write(figure, path)
