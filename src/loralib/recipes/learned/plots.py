"""The figures of a report as files, SVG and PNG: for papers and slides, where the page's own drawings do not fit."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from ..figures import SEQUENTIAL
from .drawings import Line, colour_of
from .findings import known
from .measured import Measured, Pair
from .similarity_section import mean, scale, spread
from .spectra_sections import median_spectra, norms

_MOST_LAYERS, _MOST_ROLES = 5, 8  # of a figure of heatmaps
_MAP = LinearSegmentedColormap.from_list("loralib", SEQUENTIAL)


def figures(measured: Measured) -> Iterator[tuple[str, Figure]]:
    """All figures, by the names of their files without the endings."""
    for place, pair in enumerate(measured.pairs, 1):
        if known(pair):
            name = "similarity" if len(measured.pairs) == 1 else f"similarity-{place}"
            yield name, _heatmaps(measured, pair)
    names = [alone.subject.name for alone in measured.alone]
    if lines := norms(measured):
        yield "norms", _plots(lines, names, "block", "‖ΔW‖")
    if lines := median_spectra(measured):
        yield "spectra", _plots(lines, names, "direction", "median singular value", log=True)


def _heatmaps(measured: Measured, pair: Pair) -> Figure:
    """A row for each role: some of its layers, their mean, and chance; one colour scale."""
    similarity = known(pair)
    groups = list(measured.by_role(similarity).items())[:_MOST_ROLES]
    columns = min(_MOST_LAYERS, max(len(names) for _, names in groups)) + 2
    figure = Figure(figsize=(1.9 * columns + 1, 1.9 * len(groups) + 0.7), layout="constrained")
    grid = figure.subplots(len(groups), columns, squeeze=False)
    highest = scale(similarity.values())
    for row, (role, names) in zip(grid, groups, strict=True):
        found = [similarity[name] for name in names]
        shown = [(name, similarity[name].phi) for name in spread(names, columns - 2)]
        shown += [(f"{role}, mean", mean([one.phi for one in found]))] * (len(names) > 1)
        shown += [(f"{role}, chance", mean([one.chance for one in found]))]
        for axes in row[len(shown) :]:
            axes.axis("off")
        for axes, (title, phi) in zip(row, shown, strict=False):
            image = _heatmap(axes, phi, title, highest)
    figure.colorbar(image, ax=grid, label="φ(i, j)", shrink=0.8)
    figure.suptitle(f"{pair.a.name} (i) and {pair.b.name} (j)", parse_math=False)
    return figure


def _heatmap(axes: Axes, phi: Tensor, title: str, highest: float) -> Any:
    rows, columns = phi.shape
    edges = (0.5, columns + 0.5, rows + 0.5, 0.5)
    image = axes.imshow(phi.numpy(), _MAP, aspect="auto", vmin=0, vmax=highest, extent=edges, interpolation="nearest")
    short = title if len(title) <= 28 else "…" + title[-27:]
    axes.set_title(short, fontsize=7, parse_math=False)
    axes.set_xticks(sorted({1, columns}))
    axes.set_yticks(sorted({1, rows}))
    axes.tick_params(labelsize=7)
    return image


def _plots(by_role: dict[str, list[Line]], names: Sequence[str], x: str, y: str, log: bool = False) -> Figure:
    """A plot for each role, a colour for each adapter."""
    columns = min(3, len(by_role))
    rows = math.ceil(len(by_role) / columns)
    figure = Figure(figsize=(3.2 * columns + 0.5, 2.6 * rows + 0.5), layout="constrained")
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (role, lines) in zip(every, by_role.items(), strict=False):
        for line in lines:
            axes.plot(*zip(*line.points, strict=True), color=line.colour, marker="o", markersize=3)
        axes.set_title(role, fontsize=9, parse_math=False)
        axes.set(xlabel=x, ylabel=y, yscale="log" if log else "linear")
        axes.grid(alpha=0.3)
    for axes in every[len(by_role) :]:
        axes.axis("off")
    handles = [every[0].plot([], [], color=colour_of(place))[0] for place in range(len(names))]
    legend = figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
