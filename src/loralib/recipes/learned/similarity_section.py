"""The section of the page on two adapters: heatmaps of φ like the paper's figures 3 and 4, by role and layer by layer."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ...analysis import SubspaceSimilarity
from . import tables
from .drawings import colour_bar, heatmap
from .findings import DIRECTIONS, known
from .measured import Measured, Pair
from .page import Gallery, Picture, Section
from .wording import labels

MOST_OPEN = 48  # layers of a pair that are shown without a click


def similarity_section(measured: Measured, pair: Pair, most: int) -> Section:
    """The section. most: how many layers it shows; the others are in the tables."""
    title, table = f"Shared directions: {pair.title}", tables.in_short(measured, pair)
    similarity = known(pair)
    if not similarity:
        return Section(title, "In no layer are both updates other than zero.", tables=[table])
    lead = (
        f"φ(i, j) says how far the first i directions of {pair.a.name} and the first j of {pair.b.name} agree: 1 where the "
        f"smaller space lies in the larger one, 0 where they are orthogonal. Compared are the {DIRECTIONS[measured.of]}. "
        "Random spaces in n dimensions have max(i, j) / n, which is drawn next to each role."
    )
    highest = scale(similarity.values())
    chances = [tables.chance(found, *found.phi.shape) for found in similarity.values()]
    marks = sorted({min(chances), max(chances)})
    bar = Picture(colour_bar(highest, marks), "φ, one scale for all heatmaps; the triangle marks chance for all directions")
    groups = measured.by_role(similarity)
    means = [picture for role, names in groups.items() for picture in _of_role(pair, role, names, highest)]
    galleries = [Gallery("", [bar]), Gallery("By role: the mean of its layers, and chance", means)]
    for role, names in groups.items():
        shown = spread(names, max(1, most // len(groups)))
        some = "" if len(shown) == len(names) else f" ({len(shown)} of {len(names)}; report.json has all)"
        pattern, short = labels(shown)
        pictures = [_of_layer(label, similarity[name], highest) for label, name in zip(short, shown, strict=True)]
        galleries.append(Gallery(f"{pattern or role}, layer by layer{some}", pictures, folded=len(similarity) > MOST_OPEN))
    return Section(title, lead, galleries, [table])


def _of_role(pair: Pair, role: str, names: Sequence[str], highest: float) -> Iterator[Picture]:
    """The mean over the layers of a role, what chance gives, and what the adapters began with where that is known."""
    found = [pair.similarity[name] for name in names]
    yield _picture(mean([one.phi for one in found]), highest, role)
    yield _picture(mean([one.chance for one in found]), highest, f"{role}, chance")
    if pair.start is not None and not isinstance(pair.start, str):
        starts = [pair.start[name].phi for name in names if name in pair.start and pair.start[name].phi.numel()]
        if starts:
            yield _picture(mean(starts), highest, f"{role}, A before the first step")


def _of_layer(name: str, found: SubspaceSimilarity, highest: float) -> Picture:
    return _picture(found.phi, highest, name, f"; chance {tables.chance(found, *found.phi.shape):.2f}")


def _picture(phi: Tensor, highest: float, title: str, more: str = "") -> Picture:
    """A heatmap with its first and its last value in words."""
    i, j = phi.shape
    last = f", φ({i}, {j}) = {float(phi[-1, -1]):.2f}" if i * j > 1 else ""
    caption = f"{title}: φ(1, 1) = {float(phi[0, 0]):.2f}{last}{more}"
    return Picture(heatmap(phi, highest, f"Heatmap of φ, {caption}"), caption)


def mean(matrices: Sequence[Tensor]) -> Tensor:
    """The mean of matrices, up to the size that all have.

    >>> mean([torch.ones(2, 3), torch.zeros(3, 2)])
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]], dtype=torch.float64)
    """
    rows, columns = (min(matrix.shape[axis] for matrix in matrices) for axis in (0, 1))
    return torch.stack([matrix[:rows, :columns].double() for matrix in matrices]).mean(0)


def scale(found: Iterable[SubspaceSimilarity]) -> float:
    """The end of a colour scale: the largest φ, rounded up to a tenth."""
    return max(0.1, math.ceil(10 * max(float(one.phi.max()) for one in found) - 1e-9) / 10)


def spread(names: Sequence[str], most: int) -> list[str]:
    """At most so many names, the first and the last among them.

    >>> spread(["a", "b", "c", "d"], 2), spread(["a", "b"], 1)
    (['a', 'd'], ['a'])
    """
    if len(names) <= most:
        return list(names)
    return [names[round(k * (len(names) - 1) / max(1, most - 1))] for k in range(most)]
