"""The report as files and as values."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from loralib.recipes.learned import report
from loralib.recipes.learned.findings import findings
from loralib.recipes.learned.measured import Measured
from loralib.recipes.learned.page import rendered
from loralib.recipes.learned.sections import sections
from reported import along, analysed, random_adapter


@pytest.fixture
def measured() -> Measured:
    base = nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(8, 8, bias=False)})])})
    torch.nn.init.eye_(base.get_submodule("layer.0.q").weight)  # type: ignore[arg-type]
    return analysed(along(0, 1), along(0), base=base)


def test_the_values_are_json_and_hold_every_number(measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.plots, "figures", lambda measured: ())
    values = report.write(measured, tmp_path)
    assert json.loads((tmp_path / report.NUMBERS).read_text(encoding="utf-8")) == values
    assert values["findings"] == {found.about: list(found.sentences) for found in findings(measured)}
    one = values["adapters"]["one"]
    assert one["spectra"]["layer.0.q"]["singular_values"] == pytest.approx([4.0, 2.0])
    assert one["amplification"]["layer.0.q"]["factor"] == pytest.approx(20**0.5 / 2**0.5)
    [pair] = values["pairs"]
    assert pair["similarity"]["layer.0.q"] == {"n": 8, "phi": [[1.0, 1.0]]}
    assert pair["cosine"] == pytest.approx(4 / 20**0.5)
    assert pair["start"] is None


@pytest.mark.parametrize(("count", "title"), [(1, "one"), (2, "one and two"), (3, "3 adapters")])
def test_the_title_names_what_is_analysed(count: int, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.plots, "figures", lambda measured: ())
    report.write(analysed(*(random_adapter(2, seed) for seed in range(count))), tmp_path)
    assert f"<title>What {title} learned</title>" in (tmp_path / report.PAGE).read_text(encoding="utf-8")


def test_figures_are_written_as_svg_and_png(measured: Measured, tmp_path: Path) -> None:
    report.write(measured, tmp_path)
    names = {path.name for path in (tmp_path / report.FIGURES).iterdir()}
    assert names == {f"{name}.{ending}" for name in ("similarity", "norms", "spectra") for ending in ("svg", "png")}


def test_every_class_of_the_page_has_a_style_and_every_style_is_of_use(measured: Measured) -> None:
    text = rendered("t", findings(measured), sections(measured))
    style, _, body = text.partition("</style>")
    styled = set(re.findall(r"\.([a-z]+)", re.sub(r"\{[^}]*\}", "", style.partition("<style>")[2])))
    used = {name for names in re.findall(r'class="([a-z ]+)"', body) for name in names.split()}
    assert used <= styled
    assert styled - used <= {"wide", "faint"}  # of the page of a study, and where there are many layers
