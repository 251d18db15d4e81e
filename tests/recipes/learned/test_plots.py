"""Figures as files: one colour scale, plain titles, and names for every adapter."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from loralib.recipes import figures
from loralib.recipes.learned import plots
from reported import along, analysed, random_adapter

STRANGE = "layer.0.$a$b_{<q>"


def drawn(measured: object) -> dict[str, Figure]:
    return dict(plots.figures(measured))  # type: ignore[arg-type]


def test_heatmaps_of_a_pair_share_a_scale_with_chance() -> None:
    found = drawn(analysed(random_adapter(2, 0), random_adapter(3, 1)))
    assert list(found) == ["similarity", "norms", "spectra"]
    images = [axes.images[0] for axes in found["similarity"].axes if axes.images]
    assert len({image.get_clim() for image in images}) == 1
    titles = [axes.get_title() for axes in found["similarity"].axes if axes.images]
    assert [title for title in titles if "mean" in title or "chance" in title] == [
        f"{role}, {what}" for role in ("query", "value") for what in ("mean", "chance")
    ]
    assert len(images) == 2 * (3 + 2)


def test_each_adapter_is_named_in_the_legend() -> None:
    found = drawn(analysed(along(0), along(1), along(2)))
    assert list(found) == ["similarity-1", "similarity-2", "similarity-3", "norms", "spectra"]
    for name in ("norms", "spectra"):
        [legend] = found[name].legends
        assert [text.get_text() for text in legend.get_texts()] == ["one", "two", "three"]


def test_an_adapter_of_zeros_has_no_spectrum() -> None:
    assert list(drawn(analysed(along(0, strength=(0.0,))))) == ["norms"]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_they_are_written_whatever_the_names(ending: str, tmp_path: Path) -> None:
    measured = analysed(along(0, name=STRANGE), along(1, name=STRANGE), names=["$\\frac$", "<b>"])
    for name, figure in plots.figures(measured):
        figures.write(figure, tmp_path / f"{name}.{ending}", dpi=20)
    assert len(list(tmp_path.iterdir())) == 3
    if ending == "svg":
        for path in tmp_path.iterdir():
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
            assert "<dc:date>" not in path.read_text(encoding="utf-8")
