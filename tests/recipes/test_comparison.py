"""Runs side by side: the same words for all, a process each, and what is finished is kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from loralib.cli import main
from loralib.errors import ConfigError, RunError
from loralib.recipes import comparison, run_folder
from loralib.recipes.comparison import compare

pytestmark = pytest.mark.slow


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of each process that would have been started; its work is done in this one."""
    words: list[list[str]] = []

    def train(given: list[str]) -> int:
        words.append(given)
        return main(given)

    monkeypatch.setattr(comparison, "wait_for", train)
    return words


def options(encoder: Path, reviews: Path, **values: Any) -> dict[str, Any]:
    data = {"data": str(reviews / "train.tsv"), "eval_data": str(reviews / "test.tsv")}
    return {"model": str(encoder), **data, "num_train_epochs": 1, "r": 2, "layers": "query", **values}


def test_each_method_gets_what_it_knows_and_each_seed_a_folder(
    encoder: Path, reviews: Path, tmp_path: Path, started: list[list[str]]
) -> None:
    outcomes = compare(options(encoder, reviews), {"lora": {"learning_rate": 1e-2}}, tmp_path, seeds=(3, 4), keep_weights=False)
    assert [outcome.method for outcome in outcomes] == ["lora", "last-layers", "full"]
    assert [[run["seed"] for run in outcome.results] for outcome in outcomes] == [[3, 4]] * 3
    assert [outcome.results[0]["learning_rate"] for outcome in outcomes] == [1e-2, 1e-2, 5e-5]
    assert [outcome.trained for outcome in outcomes] == [2 * 2 * 2 * 32 + 66, 66, outcomes[2].results[0]["parameters"]["total"]]
    assert outcomes[0].mean == pytest.approx(sum(outcomes[0].values) / 2)
    assert not list(tmp_path.glob("*/*/model"))
    assert len(started) == 6
    again = compare(options(encoder, reviews), {"lora": {"learning_rate": 1e-2}}, tmp_path, seeds=(3, 4, 5), resume=True)
    assert len(started) == 9
    assert [outcome.values[:2] for outcome in again] == [outcome.values for outcome in outcomes]
    compare(
        options(encoder, reviews, num_train_epochs=2),
        {"lora": {"learning_rate": 1e-2}},
        tmp_path,
        ["lora"],
        seeds=(3,),
        resume=True,
    )
    assert len(started) == 10  # other options, so another run


def test_words_that_cannot_work_are_refused_before_anything_is_trained(
    encoder: Path, reviews: Path, tmp_path: Path, started: list[list[str]]
) -> None:
    with pytest.raises(ConfigError, match="max_length"):
        compare(options(encoder, reviews, max_length=-1), {}, tmp_path)
    assert not started
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_ends_the_comparison(encoder: Path, reviews: Path, tmp_path: Path, started: list[list[str]]) -> None:
    with pytest.raises(RunError, match=r"lora ended with exit code 2"):
        compare(options(encoder, reviews, data="missing.tsv"), {}, tmp_path)
    assert len(started) == 1


def test_an_interrupted_run_is_gone_on_with(encoder: Path, reviews: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run, given = tmp_path / "lora", []
    monkeypatch.setattr(comparison, "wait_for", lambda words: given.append(words) or comparison.INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        compare(options(encoder, reviews), {}, tmp_path, ["lora"])
    chosen = comparison.TrainOptions.of({**options(encoder, reviews), "method": "lora"})
    run_folder.write_options(run, chosen, ["blame", "praise"])
    (run / run_folder.CHECKPOINTS / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        compare(options(encoder, reviews), {}, tmp_path, ["lora"], resume=True)
    (run / run_folder.CHECKPOINTS / "checkpoint-3" / "trainer_state.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        compare(options(encoder, reviews), {}, tmp_path, ["lora"], resume=True)
    assert [words[-1] for words in given] == ["--overwrite", "--overwrite", "--resume"]
    run_folder.write_metrics(run, {"metric": "accuracy", "value": 0.5})
    (kept,) = compare(options(encoder, reviews), {}, tmp_path, ["lora"], resume=True)
    assert kept.values == [0.5]
    assert json.loads((run / run_folder.METRICS).read_text())["value"] == 0.5
    assert len(given) == 3
