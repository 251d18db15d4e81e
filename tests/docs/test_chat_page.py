"""The page about the chat demo shows what was recorded: its table, and the difference between the methods."""

import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # `benchmarks` is not a part of what is installed

from benchmarks import provenance  # noqa: E402

PAGE = (ROOT / "docs" / "reproduction" / "chat.md").read_text(encoding="utf-8")
LABELS = {
    "unadapted": "as it comes",
    "few-shot": "as it comes, an example of each intent in the prompt",
    "lora": "LoRA, r = 16 on all linear layers",
    "full": "full fine-tuning",
}
SCORES = ("exact", "exact_known", "exact_new", "values", "valid")


def recorded(name: str) -> list[dict[str, Any]]:
    return provenance.read_rows(provenance.RESULTS / f"{name}.csv")


def test_the_table_is_the_recorded_one() -> None:
    for method, label in LABELS.items():
        rows = [row for row in recorded("chat") if row["method"] == method]
        assert {(row["requests"], row["train_rows"]) for row in rows} == {(240, 297 if method in ("lora", "full") else 0)}
        cells = [f"{100 * statistics.fmean(row[score] for row in rows):.1f} %" for score in SCORES]
        assert f"| {label} | {rows[0]['trained']:,} | {' | '.join(cells)} |" in PAGE


def test_the_difference_is_the_recorded_one() -> None:
    (row,) = [row for row in recorded("chat_paired") if (row["first"], row["second"]) == ("lora", "full")]
    mean, low, high = (f"{100 * row[name]:+.1f}".replace("-", "\u2212") for name in ("difference", "low", "high"))
    assert f"{mean} points (95 % interval {low} to {high})" in " ".join(PAGE.split())


def test_both_methods_are_far_above_the_model_as_it_comes() -> None:
    pairs = {(row["first"], row["second"]): row for row in recorded("chat_paired")}
    assert all(pairs[method, "unadapted"]["low"] > 0.5 for method in ("lora", "full"))
