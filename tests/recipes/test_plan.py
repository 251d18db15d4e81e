"""Each kind of task is carried out by the module that its data name."""

import inspect
from typing import Any

import pytest

from loralib.recipes import plan
from loralib.recipes.nlg import text_generation
from loralib.recipes.nlu import text_classification
from loralib.recipes.options import TrainOptions

KINDS: list[tuple[dict[str, Any], Any]] = [
    ({"data": "d.tsv"}, text_classification),
    ({"data": "d.tsv", "problem": "regression"}, text_classification),
    ({"task": "stsb"}, text_classification),
    ({"data": "d.jsonl", "problem": "generation"}, text_generation),
    ({"task": "e2e"}, text_generation),
]


@pytest.mark.parametrize(("values", "module"), KINDS)
def test_a_run_is_carried_out_by_the_module_of_its_kind(values: dict[str, Any], module: Any) -> None:
    assert plan.implementation(TrainOptions.of({"model": "m", **values})) is module


@pytest.mark.parametrize("module", [text_classification, text_generation])
def test_a_module_has_the_functions_that_a_run_calls(module: Any) -> None:
    for name in ("read_rows", "plan"):
        wanted = list(inspect.signature(getattr(plan.Implementation, name)).parameters)[1:]
        assert list(inspect.signature(getattr(module, name)).parameters) == wanted
