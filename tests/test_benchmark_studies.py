"""The benchmark of the paper's studies: what it trains, what it writes, and that it goes on."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks import provenance, studies

from loralib.cli import main
from loralib.recipes import comparison
from loralib.recipes.studies import STUDIES

pytest_plugins = ["recipes.conftest"]

ORIGIN = {"date": "2026-01-01", "commit": "abc"}


def test_what_is_there_is_gone_on_with(tmp_path: Path) -> None:
    words = studies.words("rank", "mrpc", Path("data"), tmp_path / "new", studies.budget_of("rank", "mrpc"))
    assert words[:2] == ["study", "rank"]
    assert "--resume" not in words
    assert str(studies.ROWS["mrpc"]) in words
    assert "--resume" in studies.words("rank", "mrpc", Path("data"), tmp_path, [])


def test_the_runs_of_other_studies_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (studies, provenance):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    rows = {study: {"study": study, "task": "mrpc", "value": 0.5} for study in STUDIES}
    studies.record([rows["matrices"]], ORIGIN)
    studies.record([rows["rank"]], ORIGIN)
    path = studies.record([{**rows["matrices"], "value": 0.75}], {**ORIGIN, "commit": "def"})
    found = [(row["study"], row["value"], row["commit"]) for row in provenance.read_rows(path)]
    assert found == [("rank", 0.5, "abc"), ("matrices", 0.75, "def")]


def test_a_failure_ends_it_and_ctrl_c_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "loralib", lambda words: 2)
    with pytest.raises(SystemExit):
        studies.measured("rows", "mrpc", Path("data"), tmp_path, [])
    monkeypatch.setattr(studies, "loralib", lambda words: 130)
    with pytest.raises(KeyboardInterrupt):
        studies.measured("rows", "mrpc", Path("data"), tmp_path, [])


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_every_study_on_a_tiny_model(
    study: studies.Study, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_for(words: Sequence[str]) -> int:
        return main(list(words))

    monkeypatch.setattr(comparison, "wait_for", wait_for)
    tiny = ["--model", str(encoder), "--max-eval-rows", "8", "--num-train-epochs", "1", "--seeds", "1", "--max-length", "32"]
    tiny += {
        "matrices": ["--sets", "q", "v", "--max-train-rows", "16"],
        "rank": ["--ranks", "1", "2", "--max-train-rows", "16"],
        "rows": ["--rows", "16", "--min-steps", "1", "--methods", "lora,last-layers,full", "--max-train-rows", "24"],
    }[study]
    data = Path(os.environ["LORALIB_DATA"])
    rows = studies.measured(study, "mrpc", data, tmp_path / "out", tiny)
    assert len(rows) == {"matrices": 2, "rank": 3, "rows": 6}[study]
    assert all(tuple(row)[: len(studies.COLUMNS)] == studies.COLUMNS for row in rows)
    assert {row["study"] for row in rows} == {study}
    assert {row["metric"] for row in rows} == {"accuracy"}
    monkeypatch.setattr(comparison, "wait_for", lambda words: pytest.fail("nothing is left to train"))
    assert studies.measured(study, "mrpc", data, tmp_path / "out", tiny) == rows
