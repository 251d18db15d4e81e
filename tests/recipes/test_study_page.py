"""The page of a study: its table and figure, and what the adapters of its runs learned."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import loralib as lora
from loralib.recipes import study_page, study_report
from loralib.recipes.studies import RUNS, Cell, Study
from loralib.recipes.study_report import Line
from pages import Page
from recipes.test_study_report import MATRICES, RANKS, ROWS
from reported import NAMES, random_adapter


def with_adapters(folder: Path, lines: Sequence[Line], names: Sequence[str] = NAMES) -> None:
    for at, line in enumerate(lines):
        for result in line.outcome.results:
            run = folder / RUNS / line.cell.name / f"seed-{result['seed']}"
            lora.save(random_adapter(2 + at, 10 * at + result["seed"], names), run / "adapter")


def written(folder: Path, study: Study, lines: Sequence[Line], model: str) -> Page:
    study_report.plot(folder, study, lines, "a title")
    path = study_page.write(folder, study, lines, "a title", model)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.problems == []
    return page


@pytest.fixture
def base(tmp_path: Path) -> str:
    torch.manual_seed(0)
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({f"{name}.weight": torch.randn(24, 24) for name in NAMES}, folder / "model.safetensors")
    return str(folder)


def test_the_first_two_seeds_of_each_cell_and_the_end_of_its_curve(tmp_path: Path, base: str) -> None:
    with_adapters(tmp_path, RANKS)
    text = written(tmp_path, "rank", RANKS, base).text
    for words in ("a title", "is best by accuracy", "Amplification", "study.csv next to this page"):
        assert words in text
    one, paper, rslora = "both r=1", "paper r=8", "rslora r=8"
    compared = [f"{a}, seed 0 and {b}, seed 1" for a, b in ((one, one), (one, paper), (one, rslora), (paper, paper))]
    for pair in compared:
        assert pair in text
    assert f"{paper}, seed 0 and {rslora}" not in text


def test_methods_without_adapters_have_the_table_alone(tmp_path: Path) -> None:
    lines = [Line(Cell(one.cell.name, one.cell.varied, {"method": "full"}), one.outcome) for one in ROWS]
    text = written(tmp_path, "rows", lines, "nowhere").text
    assert "is best by accuracy" in text
    assert "Spectra" not in text


def test_cells_that_share_no_layer_are_not_compared(tmp_path: Path, base: str) -> None:
    query, value = MATRICES[:2]
    with_adapters(tmp_path, [query], NAMES[::2])
    with_adapters(tmp_path, [value], NAMES[1::2])
    text = written(tmp_path, "matrices", [query, value], base).text
    assert "query r=8, seed 0 and query r=8, seed 1" in text
    assert "query r=8, seed 0 and query,value" not in text


def test_a_base_that_is_gone_leaves_the_table_and_says_so(tmp_path: Path) -> None:
    with_adapters(tmp_path, RANKS)
    text = written(tmp_path, "rank", RANKS, str(tmp_path / "nowhere")).text
    assert "is best by accuracy" in text
    assert "What the adapters learned: " in text
    assert "nowhere" in text
