"""What a study shows: numbers with their spread, and no difference that the spread does not allow."""

import io
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loralib.recipes import study_report
from loralib.recipes.grid import Outcome
from loralib.recipes.studies import Cell, Study
from loralib.recipes.study_report import Line


def line(varied: dict[str, Any], *values: float, rows: int = 100, metric: str = "accuracy") -> Line:
    def run(seed: int, value: float) -> dict[str, Any]:
        return {
            "metric": metric,
            "value": value,
            "metrics": {"loss": 1 - value / 2},
            "seed": seed,
            "kept_epoch": 1.0,
            "parameters": {"trained": 30, "lora": 20, "total": 1000},
            "train_seconds": 10.0 + seed,
            "train_rows": rows,
            "eval_rows": 5,
            "test_rows": 0,
            "steps": 9,
            "learning_rate": 0.1,
        }

    return Line(
        Cell("-".join(map(str, varied.values())), varied, {}), Outcome("a", tuple(run(*pair) for pair in enumerate(values)))
    )


MATRICES = [
    line({"matrices": "query", "r": 8}, 0.60, 0.62, 0.61),
    line({"matrices": "query,value", "r": 4}, 0.70, 0.74, 0.72),
    line({"matrices": "mlp", "r": 2}, 0.69, 0.73, 0.71),
]
RANKS = [
    line({"matrices": "query,value", "rule": "both", "r": 1}, 0.5, 0.6),
    line({"matrices": "query,value", "rule": "paper", "r": 8}, 0.6, 0.7),
    line({"matrices": "query,value", "rule": "rslora", "r": 8}, 0.7, 0.8),
]
ROWS = [
    line({"rows": 100, "method": "lora"}, 0.5, 0.6),
    line({"rows": 100, "method": "full"}, 0.9, 0.9),
    line({"rows": "all", "method": "lora"}, 0.8, 0.9, rows=2500),
    line({"rows": "all", "method": "full"}, 0.85, 0.9, rows=2500),
]
STUDIES: list[tuple[Study, list[Line]]] = [("matrices", MATRICES), ("rank", RANKS), ("rows", ROWS)]


def test_only_what_is_beyond_the_spread_is_called_a_difference() -> None:
    (said,) = study_report.findings("matrices", MATRICES)
    assert said == (
        "query,value r=4 is best by accuracy, 0.7200 ± 0.0200; within the spread of it: mlp r=2; behind it by more than the "
        "spread: query r=8 (by 0.1100)."
    )


def test_one_seed_claims_nothing() -> None:
    (said,) = study_report.findings("matrices", [line({"matrices": "q", "r": 1}, 0.5), line({"matrices": "v", "r": 1}, 0.9)])
    assert said == "v r=1 is best by accuracy, 0.9000; one seed has no spread, so no difference is claimed."
    (alone,) = study_report.findings("rank", RANKS[:1])
    assert alone.endswith("is best by accuracy, 0.5500 ± 0.0707.")


def test_each_number_of_rows_has_its_own_sentence() -> None:
    few, every = study_report.findings("rows", ROWS)
    assert few == "100 rows: full is best by accuracy, 0.9000 ± 0.0000; behind it by more than the spread: lora (by 0.3500)."
    assert every == "all rows: full is best by accuracy, 0.8750 ± 0.0354; within the spread of it: lora."


def test_the_lowest_perplexity_is_best() -> None:
    lines = [line({"matrices": name, "r": 1}, value, value, metric="perplexity") for name, value in (("q", 9.0), ("v", 3.0))]
    assert study_report.findings("matrices", lines)[0].startswith("v r=1 is best by perplexity, 3.0000")


@pytest.mark.parametrize(("distance", "within"), [(0.0, True), (0.04, True), (0.06, False)])
def test_the_spread_of_two_means_is_that_of_both(distance: float, within: bool) -> None:
    a, b = (
        Outcome(name, line({"r": 1}, *values).outcome.results)
        for name, values in (
            ("a", (0.5 - 0.03 / 2**0.5, 0.5 + 0.03 / 2**0.5)),
            ("b", (0.5 + distance - 0.04 / 2**0.5, 0.5 + distance + 0.04 / 2**0.5)),
        )
    )
    assert (a.spread, b.spread) == (pytest.approx(0.03), pytest.approx(0.04))  # √(0.03² + 0.04²) = 0.05
    assert study_report.within_spread(a, b) == study_report.within_spread(b, a) == within


@pytest.mark.parametrize(("study", "lines"), STUDIES)
def test_the_table_and_the_rows_have_every_cell(study: Study, lines: list[Line]) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(study_report.table(lines, "title"))
    shown = console.export_text()
    rows = study_report.rows(study, lines)
    assert len(rows) == sum(len(one.outcome.results) for one in lines)
    for one in lines:
        assert one.score in shown
        assert all(str(value) in shown for value in one.cell.varied.values())
        (first, *_) = [row for row in rows if all(row[name] == value for name, value in one.cell.varied.items())]
        assert (first["seed"], first["value"], first["lora"], first["trained"]) == (0, one.outcome.values[0], 20, 30)
        assert first["eval_loss"] == round(1 - one.outcome.values[0] / 2, 4)
        assert first["folder"] == f"{one.cell.name}/seed-0"
    assert len({tuple(row) for row in rows}) == 1


def test_a_rank_that_is_the_same_under_both_rules_is_on_both_curves() -> None:
    assert places("rank", RANKS) == {"query,value, paper": [1, 8], "query,value, rslora": [1, 8]}
    assert places("rank", RANKS[:1]) == {"query,value, both": [1]}
    assert places("rows", ROWS)["full"] == [100, 2500]
    assert places("matrices", MATRICES) == {"": [8, 4, 2]}


def places(study: Study, lines: list[Line]) -> dict[str, list[int]]:
    return {name: [study_report.place(line) for line in curve] for name, curve in study_report.curves(study, lines).items()}


@pytest.mark.parametrize(("study", "lines"), STUDIES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure_is_drawn_in_both_formats(study: Study, lines: list[Line], seeds: int, tmp_path: Path) -> None:
    fewer = [Line(one.cell, Outcome("a", one.outcome.results[:seeds])) for one in lines]
    png, svg = study_report.plot(tmp_path, study, fewer, "title $x$")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert xml.dom.minidom.parse(str(svg)).documentElement.tagName == "svg"
