"""The benchmark on E2E: all of its stages with a tiny model that chats and next to nothing of everything."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from loralib.cli import main
from loralib.recipes import comparison
from loralib.recipes.nlg import generator
from loralib.recipes.nlg.examples import collected, example
from loralib.recipes.nlg.tasks import read_split
from loralib.recipes.presets.nlg import Decoding
from peers import data

sys.path.append(str(Path(__file__).parent.parent))  # `benchmarks` is not a part of what is installed

from benchmarks import e2e, provenance

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
def budget(chatter: Path) -> e2e.Budget:
    short = {"no_repeat_ngram": 0, "max_new_tokens": 5}
    few = {"rows": 16, "trial_rows": 8, "dev_rows": 8, "test_inputs": 3}
    return e2e.Budget(model=str(chatter), greedy=Decoding(beams=1, **short), beams=Decoding(beams=2, **short), **few)


def test_every_stage_and_going_on(
    budget: e2e.Budget,
    trained: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *_, (rows, texts) = found = list(e2e.measure(data(), tmp_path, budget, Console()))
    assert len(found) == 4  # each method is known when it is done
    assert trained == [*e2e.METHODS]
    assert [row["method"] for row in rows] == list(texts)
    assert list(texts) == ["not adapted", "lora", "lora, ten beams", "lora-all", "last-layers", "full"]
    assert [row["trained"] > 0 for row in rows] == [False, *[True] * 5]
    assert {(row["train_rows"], row["test_inputs"]) for row in rows[1:]} == {(16, 3)}
    assert all(len(of_method) == 3 for of_method in texts.values())
    *_, (again, same) = e2e.measure(data(), tmp_path, budget, Console())
    assert len(trained) == 4
    assert (again, same) == (rows, texts)
    capsys.readouterr()
    Console(width=80).print(e2e.table(rows))
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*texts, *e2e.SCORES.values(), "70.4", "46.8"))
    assert "…" not in shown
    monkeypatch.setattr(provenance, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(e2e, "FIGURE", tmp_path / "images" / "e2e.png")
    usual = [row | {"train_rows": 3000} for row in rows]
    test = read_split("e2e", "test", data()).select(range(3))
    wrote = e2e.record(usual, texts, test, provenance.provenance("cpu"))
    assert [path.name for path in wrote] == ["e2e.csv", "e2e_samples.md", "e2e.png"]
    assert wrote[2].stat().st_size > 5000
    with wrote[0].open(newline="") as file:
        assert [row["bleu"] for row in csv.DictReader(file)] == [str(row["bleu"]) for row in rows]
    assert [path.name for path in e2e.record(rows, texts, test, {})] == ["e2e_16.csv", "e2e_16_samples.md"]


def test_the_perplexity_is_what_a_run_found(budget: e2e.Budget, trained: list[str], tmp_path: Path) -> None:
    chosen = e2e.options(data(), "full", 1e-3, 8, budget)
    found = comparison.train_apart(chosen, tmp_path / "full", resume=True)
    assert e2e.perplexity(generator.open_run(tmp_path / "full"), chosen) == pytest.approx(found["value"], rel=1e-4)


def test_rates_are_tried_on_few_rows(
    budget: e2e.Budget, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(e2e, "RATES", {"lora": (1e-3, 1e-2)})
    monkeypatch.setattr(e2e, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(provenance, "RESULTS", tmp_path)
    rows = list(e2e.try_rates(data(), tmp_path / "runs", budget))
    assert [(row["learning_rate"], row["train_rows"]) for row in rows] == [(1e-3, 8), (1e-2, 8)]
    assert all(row["perplexity"] > 1 for row in rows)
    before = {**rows[1], **provenance.provenance(), "commit": "before"}
    provenance.write_rows("e2e_rates", [before], {})
    recorded = provenance.read_rows(e2e.record_rates(data(), budget))
    assert [(row["learning_rate"], row["commit"] == "before") for row in recorded] == [(1e-2, True), (1e-3, False)]


def test_a_long_run_is_saved_on_its_way() -> None:
    steps = [e2e.options(data(), "lora", 1e-3, rows, e2e.Budget()).save_steps for rows in (480, 3000, 20_000)]
    assert steps == [None, None, 250]


def test_the_chosen_rates_are_among_those_tried() -> None:
    assert e2e.BEST.keys() == e2e.RATES.keys() == e2e.METHODS.keys()
    assert all(e2e.BEST[name] in rates for name, rates in e2e.RATES.items())


def test_samples_are_spread_over_the_inputs_and_say_whose_they_are(tmp_path: Path) -> None:
    given = collected("x", [example(f"name : {i} | a : b", [f"{i} .", "other"]) for i in range(10)])
    path = e2e.write_samples(tmp_path / "samples.md", given, {"lora": [f"a | {i} <" for i in range(10)]}, n=4)
    written = path.read_text()
    assert [line for line in written.splitlines() if line.startswith("## ")] == ["## 1", "## 4", "## 7", "## 10"]
    assert "CC BY-SA 4.0" in written
    assert "| lora | a \\| 9 &lt; |" in written


def test_without_data_one_sentence_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LORALIB_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["e2e"])
    assert e2e.main() == 2
    assert "set LORALIB_DATA" in capsys.readouterr().err
    monkeypatch.setenv("LORALIB_DATA", ".")
    monkeypatch.setattr(sys, "argv", ["e2e", "--methods", "loar"])
    assert e2e.main() == 2
    assert "give some of lora,lora-all" in capsys.readouterr().err
