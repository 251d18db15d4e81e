"""The page about E2E shows what was recorded: its table, and the rates that were tried."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # `benchmarks` is not a part of what is installed

from benchmarks import e2e, provenance  # noqa: E402

PAGE = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
LABELS = {
    e2e.UNADAPTED: "not adapted, with an instruction",
    e2e.PAPER: "LoRA as in the paper: r = 4 on query and value",
    e2e.BEAMS: "the same, by the paper's ten beams",
    "lora-all": "LoRA, r = 16 on all linear layers",
    "last-layers": "the last two blocks",
    "full": "full fine-tuning",
}


def recorded(name: str) -> list[dict[str, Any]]:
    return provenance.read_rows(provenance.RESULTS / f"{name}.csv")


def test_the_table_is_the_recorded_one() -> None:
    rows = {row["method"]: row for row in recorded("e2e")}
    assert list(rows) == [method for method in LABELS if method in rows]
    for method, row in rows.items():
        digits = {"bleu": 1, "nist": 2, "meteor": 1, "rouge_l": 1, "cider": 2}
        cells = [f"{row['perplexity']:.2f}", *(f"{row[name]:.{n}f}" for name, n in digits.items())]
        assert f"| {LABELS[method]} | {row['trained']:,} | {' | '.join(cells)} |" in PAGE


def test_the_rates_are_the_best_of_those_that_were_tried() -> None:
    tried: dict[str, dict[float, float]] = {}
    for row in recorded("e2e_rates"):
        tried.setdefault(row["method"], {})[row["learning_rate"]] = row["perplexity"]
    assert {name: tuple(found) for name, found in tried.items()} == e2e.RATES
    assert {name: min(found, key=lambda rate: found[rate]) for name, found in tried.items()} == e2e.BEST
    assert all(row["learning_rate"] == e2e.BEST[row["method"]] for row in recorded("e2e") if row["method"] in e2e.BEST)
