"""The table of runs that a person sees at their end."""

from pathlib import Path

import pytest
from rich.console import Console

from loralib.recipes import comparison_report, figures, report
from loralib.recipes.search import Trial
from loralib.train import rich_text

STRANGE = "[bold]a[/x] :smile: [/red] $a$b_{"


def test_tables_titles_and_plots_take_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {
        "parameters": {"trained": 1, "lora": 1, "total": 1},
        "method": "lora",
        "metric": "accuracy",
        "value": 1.0,
        "train_seconds": 1.0,
        "peak_memory_bytes": 1,
        "saved_bytes": 1,
    }
    values = {"r": 4, "lora_alpha": 4, "layers": "[/x]", "train_head": "all", "learning_rate": 1e-3}
    trial = Trial(0, 8, values, 0.5, 1, 1.0)
    console = Console(width=200, record=True)
    console.print(report.summary_table([run], STRANGE))
    comparison_report.tell_trial(console, trial)
    console.print(comparison_report.search_table([trial], "accuracy"))
    rich_text.say(console, f"{STRANGE}\x1b[31m", STRANGE)
    shown = console.export_text()
    assert shown.count(STRANGE) == 3
    assert shown.count("[/x]") == 5
    assert "\\x1b[31m" in shown
    figures.learning_curve(tmp_path / "a.png", [{"epoch": 1.0, "loss": 1.0, "eval_loss": 1.0}], "accuracy", 1.0, STRANGE)


def test_the_share_that_is_trained_is_never_more_than_all() -> None:
    run = {"parameters": {"trained": 41_037, "lora": 40_960, "total": 77}, "method": "lora", "metric": "accuracy", "value": 1.0}
    table = report.summary_table([run | {"train_seconds": 1.0, "peak_memory_bytes": 1, "saved_bytes": 1}])
    console = Console(width=200, record=True)
    console.print(table)
    assert "100.00 %" in console.export_text()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (310_000, "310 kB"),
        (999_999, "1000 kB"),
        (1.5e9, "1.5 GB"),
        (5e12, "5 TB"),
    ],
)
def test_a_size_has_the_unit_that_fits_it(size: float, text: str) -> None:
    assert report.human_bytes(size) == text


@pytest.mark.parametrize(("share", "text"), [(1.0, "100.00 %"), (0.001, "0.10 %"), (0.00099, "0.099 %"), (0.0, "0.000 %")])
def test_a_small_share_has_the_digits_that_it_needs(share: float, text: str) -> None:
    assert report.human_share(share) == text
