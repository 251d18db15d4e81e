"""The benchmark of SmolLM2 on E2E: all of its stages with a tiny model that chats and next to nothing of everything."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from loralib.cli import main
from loralib.recipes import comparison
from loralib.recipes.presets.nlg import Decoding
from peers import data

sys.path.append(str(Path(__file__).parent.parent))  # `benchmarks` is not a part of what is installed

from benchmarks import e2e_smollm2 as benchmark

pytest_plugins = ["recipes.chat.conftest"]
pytestmark = pytest.mark.slow


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are trained, in this process."""
    names: list[str] = []

    def wait_for(words: Sequence[str]) -> int:
        names.append(Path(words[2]).stem)
        return main(list(words))

    monkeypatch.setattr(comparison, "wait_for", wait_for)
    return names


@pytest.fixture
def budget(chatter: Path) -> benchmark.Budget:
    short = {"no_repeat_ngram": 0, "max_new_tokens": 5}
    few = {"rows": 16, "trial_rows": 8, "dev_rows": 8, "test_inputs": 3}
    return benchmark.Budget(model=str(chatter), greedy=Decoding(beams=1, **short), beams=Decoding(beams=2, **short), **few)


def test_every_stage_and_going_on(
    budget: benchmark.Budget, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, texts = benchmark.measure(data(), tmp_path, budget, Console())
    assert trained == [*benchmark.METHODS]
    assert [row["method"] for row in rows] == list(texts)
    assert list(texts) == ["not adapted", "lora", "lora, ten beams", "lora-all", "last-layers", "full"]
    assert [row["trained"] > 0 for row in rows] == [False, *[True] * 5]
    assert {(row["train_rows"], row["test_inputs"]) for row in rows[1:]} == {(16, 3)}
    assert all(len(of_method) == 3 for of_method in texts.values())
    again, same = benchmark.measure(data(), tmp_path, budget, Console())
    assert len(trained) == 4
    assert (again, same) == (rows, texts)
    capsys.readouterr()
    Console(width=200).print(benchmark.table(rows))
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*texts, "70.4 ± .1"))


def test_rates_are_tried_on_few_rows(
    budget: benchmark.Budget, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "RATES", {"lora": (1e-3, 1e-2)})
    monkeypatch.setattr(benchmark, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(benchmark.provenance, "RESULTS", tmp_path)
    rows = list(benchmark.try_rates(data(), tmp_path / "runs", budget))
    assert [(row["learning_rate"], row["train_rows"]) for row in rows] == [(1e-3, 8), (1e-2, 8)]
    assert all(row["perplexity"] > 1 for row in rows)
    before = {**rows[1], **benchmark.provenance.provenance(), "commit": "before"}
    benchmark.provenance.write_rows("e2e_smollm2_rates", [before], {})
    recorded = benchmark.provenance.read_rows(benchmark.record_rates(data(), budget))
    assert [(row["learning_rate"], row["commit"] == "before") for row in recorded] == [(1e-2, True), (1e-3, False)]


def test_the_chosen_rates_are_among_those_tried() -> None:
    assert benchmark.BEST.keys() == benchmark.RATES.keys() == benchmark.METHODS.keys()
    assert all(benchmark.BEST[name] in rates for name, rates in benchmark.RATES.items())
