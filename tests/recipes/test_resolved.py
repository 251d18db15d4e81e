"""A run's file holds the values that were used, and says the same options when it is read again."""

from typing import Any

import pytest

from loralib.recipes.options import TrainOptions
from loralib.recipes.resolved import resolved

RUNS: dict[str, dict[str, Any]] = {
    "a file": {"data": "d.tsv"},
    "a file with its evaluation": {"data": "d.tsv", "eval_data": "e.tsv"},
    "a task": {"task": "mrpc"},
    "layers by name": {"data": "d.tsv", "target_modules": ["q"]},
    "layers by role": {"data": "d.tsv", "layers": "mlp, key"},
    "another method": {"data": "d.tsv", "method": "full"},
    "texts": {"data": "d.jsonl", "problem": "generation"},
    "a device's batch": {"data": "d.tsv", "device_batch_size": 4},
    "all said": {
        "data": "d.tsv",
        "learning_rate": 0.5,
        "max_length": 7,
        "eval_fraction": 0.3,
        "gradient_accumulation_steps": 2,
    },
}


@pytest.mark.parametrize("run", RUNS)
def test_it_reads_as_the_same_run_and_says_no_none(run: str) -> None:
    options = TrainOptions.of({"model": "m", **RUNS[run]})
    found = resolved(options)
    again = TrainOptions.of(found)
    assert resolved(again) == found
    assert None not in [*found.values(), *found["lora"].values()]
    for used in ("peak_learning_rate", "length", "metric", "kind", "roles", "takes_pairs", "tests"):
        assert getattr(again, used) == getattr(options, used)
    assert all(found[name] == value for name, value in RUNS[run].items() if name != "target_modules")


def test_what_was_used_stands_where_nothing_was_given() -> None:
    found = resolved(TrainOptions.of({"model": "m", "data": "d.tsv"}))
    assert (found["learning_rate"], found["max_length"], found["metric_for_best_model"]) == (5e-4, 128, "accuracy")
    assert (found["problem"], found["eval_fraction"], found["layers"]) == ("classification", 0.1, "query,value")
    assert found["gradient_accumulation_steps"] == 1
    for run, absent in (
        ("a task", "problem"),
        ("a task", "eval_fraction"),
        ("a file with its evaluation", "eval_fraction"),
        ("layers by name", "layers"),
        ("another method", "layers"),
        ("a device's batch", "gradient_accumulation_steps"),
    ):
        assert absent not in resolved(TrainOptions.of({"model": "m", **RUNS[run]}))
