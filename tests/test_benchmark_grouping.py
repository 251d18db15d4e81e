"""The benchmark of batches of like length: both kinds are trained by turns, and the table compares them seed by seed."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks import grouping
from rich.console import Console

from loralib.cli import main
from loralib.recipes import comparison

pytest_plugins = ["recipes.conftest"]


def test_the_table_compares_seed_by_seed() -> None:
    rows = [
        {"task": "sst2", "seed": seed, "grouped": grouped, "accuracy": accuracy, "train_seconds": seconds}
        for seed, grouped, accuracy, seconds in [
            (0, True, 0.81, 50),
            (0, False, 0.8, 100),
            (1, True, 0.8, 60),
            (1, False, 0.82, 100),
        ]
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(grouping.table(rows))
    shown = " ".join(console.file.getvalue().split())
    for part in ("80.5 %", "81.0 %", "+1.0, -2.0", "0.55"):
        assert part in shown


@pytest.mark.slow
def test_both_kinds_on_a_tiny_model(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for(words: Sequence[str]) -> int:
        return main(list(words))

    monkeypatch.setattr(comparison, "wait_for", wait_for)
    tiny = {"model": str(encoder), "max_eval_rows": 8, "num_train_epochs": 1, "max_train_rows": 32, "max_length": 32}
    rows = list(grouping.measure(Path(os.environ["LORALIB_DATA"]), tmp_path, ["mrpc"], 1, tiny))
    assert [row["grouped"] for row in rows] == [True, False]
    assert {(row["task"], row["train_rows"], row["epochs"]) for row in rows} == {("mrpc", 32, 1)}
