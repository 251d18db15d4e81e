"""Figures of runs: read without a word of explanation."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from loralib.recipes import comparison_report, figures
from loralib.recipes.comparison import Outcome
from loralib.recipes.task import METHODS

HISTORY = [
    {"epoch": 0.5, "loss": 0.7},
    {"epoch": 1.0, "eval_loss": 0.65, "eval_accuracy": 0.6},
    {"epoch": 1.5, "loss": 0.5},
    {"epoch": 2.0, "eval_loss": 0.68, "eval_accuracy": 0.55},
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written."""
    found: list[Figure] = []
    real = figures.write

    def write(figure: Figure, path: Path, dpi: int = 120) -> None:
        real(figure, path, dpi)
        found.append(figure)

    monkeypatch.setattr(figures, "write", write)
    return found


def outcome(method: Any, trained: int) -> Outcome:
    run = {"metric": "accuracy", "value": 0.6, "parameters": {"trained": trained}, "history": HISTORY, "kept_epoch": 1.0}
    return Outcome(method, (run,))


@pytest.fixture(params=["curve", "comparison"])
def figure(request: pytest.FixtureRequest, drawn: list[Figure], tmp_path: Path) -> Figure:
    path = tmp_path / "plot.png"
    if request.param == "curve":
        figures.learning_curve(path, HISTORY, "accuracy", 1.0, "title")
    else:
        comparison_report.comparison_plot(path, [outcome(method, 10**i) for i, method in enumerate(METHODS)], "title")
    assert path.read_bytes().startswith(b"\x89PNG")
    return drawn[0]


def test_the_legend_covers_no_point(figure: Figure) -> None:
    assert all(axes.get_legend() is None for axes in figure.axes)
    (legend,) = figure.legends
    legend_box = legend.get_window_extent()
    assert not any(legend_box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_all_points_and_words_are_inside(figure: Figure) -> None:
    for axes in figure.axes:
        for line in axes.lines:
            inside = axes.get_window_extent().padded(1)
            assert all(inside.contains(*axes.transData.transform(point)) for point in line.get_xydata())
    whole = figure.bbox.padded(1)
    words = [text for axes in figure.axes for text in axes.texts]
    for text in (*words, figure.legends[0]):
        box = text.get_window_extent()
        assert whole.contains(box.x0, box.y0)
        assert whole.contains(box.x1, box.y1)


def test_ticks_are_whole_epochs_and_the_kept_one_has_a_star(figure: Figure) -> None:
    for axes in figure.axes:
        if axes.get_xlabel() == "epoch":
            assert all(float(tick).is_integer() for tick in axes.get_xticks())
            stars = [line for line in axes.lines if line.get_marker() == "*"]
            assert stars
            assert all(star.get_xdata()[0] == 1.0 for star in stars)


def test_less_than_an_epoch_keeps_its_ticks(drawn: list[Figure], tmp_path: Path) -> None:
    history = [{"epoch": 0.1, "loss": 0.7}, {"epoch": 0.2, "eval_loss": 0.6, "eval_accuracy": 0.5}]
    figures.learning_curve(tmp_path / "plot.png", history, "accuracy", 0.2, "title")
    assert any(0 < tick < 1 for tick in drawn[0].axes[0].get_xticks())


def test_a_method_has_one_colour_in_all_plots_of_a_comparison(drawn: list[Figure], tmp_path: Path) -> None:
    for chosen in (METHODS, METHODS[::-1], METHODS[1:]):
        comparison_report.comparison_plot(tmp_path / "plot.png", [outcome(m, 10**i) for i, m in enumerate(chosen)], "title")
        epochs = drawn[-1].axes[1]
        colours = [to_hex(line.get_color()).upper() for line in epochs.lines if line.get_marker() == "o"]
        assert colours == [figures.METHOD_COLOURS[method] for method in chosen]


@pytest.mark.parametrize("title", ["lora, a$b$c_{", "lora, [red]x[/red]", "lora, データ", "\\frac{1"])
def test_a_title_is_text(title: str, drawn: list[Figure], tmp_path: Path) -> None:
    figures.learning_curve(tmp_path / "plot.png", HISTORY, "accuracy", 1.0, title)
    assert drawn[0].get_suptitle() == title


def test_values_that_are_not_there_or_not_finite_are_left_out(drawn: list[Figure], tmp_path: Path) -> None:
    figures.learning_curve(tmp_path / "a.png", [{"epoch": 1.0, "eval_accuracy": 0.5}], "accuracy", 1.0, "title")
    history = [{"epoch": 1.0, "loss": float("nan"), "eval_loss": float("inf"), "eval_accuracy": 0.5}]
    figures.learning_curve(tmp_path / "b.png", history, "accuracy", 1.0, "title")
    assert len(drawn) == 2


def test_lines_of_text_lie_below_the_legend(drawn: list[Figure], tmp_path: Path) -> None:
    figures.learning_curve(
        tmp_path / "plot.png", HISTORY, "accuracy", 1.0, "title", ["prompt: a", "before: b", "a plain sentence, " * 30]
    )
    whole = drawn[0]
    above, below = whole.subfigs
    (legend,) = above.legends
    boxes = [text.get_window_extent() for text in below.texts]
    assert len(boxes) == 3
    assert all(box.y1 <= legend.get_window_extent().y0 for box in boxes)
    assert all(box.x1 <= whole.bbox.x1 for box in boxes)
    assert all(one.y0 >= other.y1 for one, other in pairwise(boxes))


@pytest.mark.parametrize(("last", "scale"), [(9.0, "log"), (300.0, "linear")])
def test_perplexities_far_apart_are_drawn_on_a_logarithmic_scale(
    last: float, scale: str, drawn: list[Figure], tmp_path: Path
) -> None:
    history = [{"epoch": 0.0, "eval_loss": 6.0, "eval_perplexity": 400.0}]
    history.append({"epoch": 1.0, "eval_loss": 2.0, "eval_perplexity": last})
    figures.learning_curve(tmp_path / "plot.png", history, "perplexity", 1.0, "title")
    axes = drawn[0].axes[1]
    assert axes.get_yscale() == scale
    assert not any("^" in tick.get_text() for tick in axes.get_yticklabels(which="both"))
