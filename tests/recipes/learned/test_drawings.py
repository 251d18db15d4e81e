"""Drawings: valid, with a text alternative, and with the numbers where they belong."""

import base64
import io
import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from loralib.recipes.figures import SEQUENTIAL
from loralib.recipes.learned.drawings import LEVELS, MOST_CELLS, Line, colour_bar, heatmap, plot, png
from pages import Page

EVIL = "<script>&\"'"


def pixels(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).long()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_a_png_has_a_pixel_for_each_cell_lighter_for_more(rows: int, columns: int, seed: int) -> None:
    cells = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    found = pixels(png(cells))
    assert found.shape == (rows, columns, 3)
    light = found.float() @ torch.tensor([0.299, 0.587, 0.114])
    levels = (cells * (LEVELS - 1)).round()
    order = levels.flatten().argsort()
    assert (light.flatten()[order].diff() >= -0.51).all()


def test_the_ends_of_the_scale_have_their_colours() -> None:
    [[first, last, nan, above]] = pixels(png(torch.tensor([[0.0, 1.0, math.nan, 7.0]]))).tolist()
    for found, colour in ((first, SEQUENTIAL[0]), (last, SEQUENTIAL[-1]), (nan, SEQUENTIAL[0]), (above, SEQUENTIAL[-1])):
        assert found == pytest.approx([255 * part for part in to_rgb(colour)], abs=1)


def image_in(svg: str) -> torch.Tensor:
    [encoded] = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    return pixels(base64.b64decode(encoded))


@pytest.mark.parametrize("shape", [(1, 1), (8, 64), (64, 8), (300, 2)])
def test_a_heatmap_names_its_corners_and_is_not_large(shape: tuple[int, int]) -> None:
    svg = heatmap(torch.rand(shape), 1.0, EVIL)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == EVIL
    assert {"1", *(str(size) for size in shape if size > 1)} <= {text.text for text in root.iter("text")}
    assert image_in(svg).shape[:2] == tuple(min(size, MOST_CELLS) for size in shape)
    assert Page(svg).problems == []


def test_cells_are_relative_to_the_highest() -> None:
    values = torch.tensor([[0.25, 0.5]])
    assert torch.equal(image_in(heatmap(values, 0.5, "a")), image_in(heatmap(2 * values, 1.0, "b")))


def test_the_scale_marks_chance_where_it_is() -> None:
    root = ElementTree.fromstring(colour_bar(0.8, [0.2]))
    [mark] = root.iter("path")
    assert mark.get("d", "").startswith("M65.0 ")  # a quarter of the way from 10 to 230
    assert [text.text for text in root.iter("text")] == ["0", "0.4", "0.8"]
    assert "chance is marked, 0.2" in root.get("aria-label", "")


def places(svg: str) -> list[list[tuple[float, float]]]:
    found = [path.get("d", "") for path in ElementTree.fromstring(svg).iter("path") if "line" in path.get("class", "")]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)] for path in found]


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=9), st.booleans())
def test_larger_values_are_drawn_higher(values: Sequence[float], log: bool) -> None:
    [points] = places(plot([Line("a", list(enumerate(values, 1)), "#000")], "x", "y", "alt", log=log))
    for (x, y), (x_2, y_2), value, next_value in zip(points, points[1:], values, values[1:], strict=False):
        assert x < x_2
        assert y >= y_2 - 0.11 if next_value >= value else y <= y_2 + 0.11


def test_what_cannot_be_drawn_is_left_out() -> None:
    points = [(1.0, 2.0), (2.0, math.nan), (3.0, -1.0), (4.0, math.inf), (5.0, 1.0)]
    assert [len(line) for line in places(plot([Line("a", points, "#000")], "x", "y", "alt", log=True))] == [2]
    assert [len(line) for line in places(plot([Line("a", points, "#000")], "x", "y", "alt"))] == [3]


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -1.0)]])
@pytest.mark.parametrize("log", [True, False])
def test_few_or_equal_points_are_a_plot(points: list[tuple[float, float]], log: bool) -> None:
    svg = plot([Line(EVIL, points, "#000")], EVIL, EVIL, EVIL, log=log, zero=not log)
    assert ElementTree.fromstring(svg).get("aria-label") == EVIL
    assert Page(svg).problems == []
    assert "nan" not in svg


def test_ticks_of_whole_numbers_are_whole() -> None:
    svg = plot([Line("a", [(0, 1.5), (5, 2.5)], "#000")], "block", "norm", "alt", zero=True)
    texts = [text.text or "" for text in ElementTree.fromstring(svg).iter("text")]
    assert {"0", "1", "2", "3", "4", "5"} <= set(texts)
    assert texts.index("0") == 0  # y begins at 0
