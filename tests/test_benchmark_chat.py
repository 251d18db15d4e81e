"""The benchmark of `make chat`: its examples, its paired interval, and all of its stages with next to nothing of everything."""

import csv
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from loralib.cli import main
from loralib.recipes import comparison

sys.path.append(str(Path(__file__).parent.parent))  # `benchmarks` and `examples` are not parts of what is installed

from benchmarks import chat as benchmark
from benchmarks import provenance
from examples import chat
from examples.front_desk import make

pytest_plugins = ["recipes.chat.conftest"]


def outcome(exact: Sequence[bool]) -> chat.Outcome:
    return chat.Outcome(None, [""] * len(exact), [chat.Score(True, right, 1.0) for right in exact])


def test_an_example_of_each_intent_is_shown() -> None:
    messages = benchmark.an_example_of_each_intent()
    assert [message["role"] for message in messages] == ["user", "assistant"] * 5
    assert {(chat.parsed(message["content"]) or {}).get("intent") for message in messages[1::2]} == {*make.INTENTS}


def test_the_paired_interval() -> None:
    rng = random.Random(0)
    first, second = ([outcome([rng.random() < p for _ in range(200)]) for _ in range(2)] for p in (0.8, 0.6))
    mean, half = benchmark.difference(first, second)
    shares = [statistics.fmean(score.exact for run in runs for score in run.scores) for runs in (first, second)]
    assert mean == pytest.approx(shares[0] - shares[1])
    draws = [
        benchmark.difference(*[[resampled(run, seed) for run in runs] for runs in (first, second)])[0] for seed in range(150)
    ]
    assert half == pytest.approx(1.96 * statistics.stdev(draws), rel=0.15)  # as the bootstrap over the requests finds
    assert benchmark.difference(first, first) == (0.0, 0.0)


def resampled(run: chat.Outcome, seed: int) -> chat.Outcome:
    """The outcome of requests drawn with replacement, the same for the same seed."""
    rng = random.Random(seed)
    return outcome([rng.choice(run.scores).exact for _ in run.scores])


@pytest.mark.slow
def test_every_stage_of_the_benchmark(chatter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "wait_for", lambda words: main(list(words)))
    monkeypatch.setattr(benchmark, "an_example_of_each_intent", list)  # the tiny model has no room for five
    budget = chat.Budget(model=str(chatter), max_length=512, rows=16, requests=12, max_new_tokens=3)
    data, outcomes = benchmark.measure(tmp_path / "runs", budget, 2, Console(), resume=False, examples=True)
    assert {name: len(found) for name, found in outcomes.items()} == {
        "unadapted": 1,
        benchmark.SHOWN: 1,
        "lora": 2,
        "full": 2,
    }
    rows = [benchmark.row(name, found, data) for name, of_method in outcomes.items() for found in of_method]
    assert [(row["method"], row["seed"], row["train_rows"]) for row in rows[2:]] == [
        ("lora", 0, 16),
        ("lora", 1, 16),
        ("full", 0, 16),
        ("full", 1, 16),
    ]
    assert len({row["perplexity"] for row in rows[2:]}) == 4  # another seed is another run
    benchmark.plot(rows, tmp_path / "images" / "chat.png")
    assert (tmp_path / "images" / "chat.png").stat().st_size > 5000
    monkeypatch.setattr(provenance, "RESULTS", tmp_path / "results")
    with provenance.write_rows("chat_paired", benchmark.pair_rows(outcomes), provenance.provenance("cpu")).open() as file:
        assert [(row["first"], row["second"]) for row in csv.DictReader(file)] == list(benchmark.PAIRS)
