"""What a person sees of a comparison and of the search before it."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loralib.recipes import comparison_report
from loralib.recipes.comparison import Outcome
from loralib.recipes.search import Trial


def outcome(method: Any, *values: float, test: float | None = None) -> Outcome:
    def run(seed: int, value: float) -> dict[str, Any]:
        return {
            "method": method,
            "metric": "accuracy",
            "value": value,
            "seed": seed,
            "kept_epoch": 1.0,
            "parameters": {"trained": 10, "lora": 5, "total": 1000},
            "history": [{"epoch": 1.0, "eval_loss": 0.5, "eval_accuracy": value}],
            "train_seconds": 10.0 + seed,
            "peak_memory_bytes": 1e9,
            "saved_bytes": 1000,
            "train_rows": 4,
            "eval_rows": 5,
            "test_rows": 6,
            "learning_rate": 0.1,
        } | ({} if test is None else {"test": {"accuracy": test}})

    return Outcome(method, tuple(run(seed, value) for seed, value in enumerate(values)))


def test_a_test_score_counts_where_there_is_one() -> None:
    assert outcome("lora", 0.5, test=0.25).values == [0.25]
    assert outcome("lora", 0.5, 0.7).values == [0.5, 0.7]
    assert outcome("lora", 0.5).spread == 0.0
    assert outcome("lora", 0.5, 0.7).spread == pytest.approx(0.1414, abs=1e-4)
    (row,) = comparison_report.comparison_rows([outcome("lora", 0.5, test=0.25)])
    assert (row["value"], row["scored_on"], row["trained"], row["test_rows"]) == (0.25, "test", 10, 6)


@pytest.mark.slow
def test_the_table_shows_the_spread_and_the_plot_is_drawn(tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    outcomes = [outcome("lora", 0.5, 0.7), outcome("full", 0.6)]
    console.print(comparison_report.comparison_table(outcomes, "title"))
    shown = console.export_text()
    assert "0.6000 ± 0.1414" in shown
    assert "title" in shown
    comparison_report.comparison_plot(tmp_path / "plot.png", outcomes, "title")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_for_a_file_is_a_run() -> None:
    rows = comparison_report.comparison_rows([outcome("lora", 0.123456, 0.7), outcome("full", 0.6)])
    assert [(row["method"], row["seed"], row["value"], row["train_seconds"]) for row in rows] == [
        ("lora", 0, 0.1235, 10),
        ("lora", 1, 0.7, 11),
        ("full", 0, 0.6, 10),
    ]
    assert {row["scored_on"] for row in rows} == {"evaluation"}
    assert (rows[0]["trained"], rows[0]["lora"], rows[0]["total"], rows[0]["saved_bytes"]) == (10, 5, 1000, 1000)


def test_costs_are_medians_and_one_run_has_no_spread() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison_report.comparison_table([outcome("lora", 0.5, 0.6, 0.7), outcome("full", 0.6)]))
    (of_lora,) = [line for line in console.export_text(clear=False).splitlines() if "lora" in line]
    (of_full,) = [line for line in console.export_text().splitlines() if "full" in line]
    assert "11 s" in of_lora
    assert "±" not in of_full


def trial(**values: Any) -> Trial:
    usual = {"r": 4, "lora_alpha": 8.0, "layers": "query,value", "train_head": "all", "learning_rate": 1e-3}
    return Trial(0, 1800, {**usual, **values}, 0.54321, 12_345, 1.0)


def test_a_trial_is_a_line_of_what_was_chosen() -> None:
    console = Console(width=40, record=True, file=io.StringIO())
    comparison_report.tell_trial(console, trial(layers=None, target_modules="q"))
    said = console.export_text().strip()
    assert said == "0.5432 on 1,800 rows: r=4, lora_alpha=8.0, train_head=all, learning_rate=0.001, target_modules=q"


def test_the_search_is_a_line_a_trial() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(comparison_report.search_table([trial(), trial(r=16, layers=None, target_modules="q,k")], "accuracy"))
    shown = console.export_text()
    for word in ("accuracy", "query, value", "q, k", "0.5432", "12,345", "1,800", "0.001", "16"):
        assert word in shown
