"""Kinds of task: what each row says is true of its module and of the options."""

from dataclasses import fields
from importlib import import_module

import numpy as np
import pytest

from loralib.recipes import plan, task
from loralib.recipes.nlg import loss
from loralib.recipes.nlu import metrics
from loralib.recipes.options import TrainOptions


@pytest.mark.parametrize("kind", task.TASKS)
def test_a_kind_has_options_metrics_and_a_module(kind: task.Problem) -> None:
    row = task.TASKS[kind]
    assert set(row.options) <= {option.name for option in fields(TrainOptions)}
    assert set(row.named.values()) <= set(row.metrics)
    module = import_module(f"loralib.recipes.{row.module}")
    assert callable(module.read_rows)
    assert callable(module.plan)
    assert plan.implementation(TrainOptions(model="m", data="d.jsonl", problem=kind)) is module


def test_the_metrics_are_those_that_are_computed() -> None:
    two, one = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[0.1], [0.8]])
    assert metrics.of_logits(two, np.array([1.0, 0.0])).keys() == set(task.CLASSIFICATION.metrics)
    assert metrics.of_logits(one, np.array([1.0, 0.0])).keys() == set(task.REGRESSION.metrics)
    assert loss.of_rows(np.array([[2.0, 1.0]])).keys() == set(task.GENERATION.metrics)


def test_a_task_by_name_says_its_kind_and_other_data_what_they_are_told() -> None:
    named = {name: kind for kind, row in task.TASKS.items() for name in row.named}
    assert {name: task.kind_of(name, None) for name in named} == named
    assert named["stsb"] == "regression"
    assert task.kind_of(None, None) == task.kind_of("unknown", None) == "classification"
    assert task.kind_of(None, "generation") == "generation"


def test_more_is_better_but_for_losses() -> None:
    assert task.goodness("accuracy", 0.5) > task.goodness("accuracy", 0.4)
    assert task.goodness("perplexity", 2.0) > task.goodness("perplexity", 3.0)
