"""A grid trains every cell with every seed, in order, and each method gets the options that act with it."""

from pathlib import Path
from typing import Any

import pytest

from loralib.errors import ConfigError, RunError
from loralib.recipes import grid, plan
from loralib.recipes.grid import Outcome, of_method, train_grid
from loralib.recipes.options import TrainOptions
from loralib.recipes.task import METHODS, Method

OPTIONS = TrainOptions.of({"model": "m", "data": "d.tsv", "seed": 7})


def result(value: float, test: float | None = None) -> dict[str, Any]:
    found = {"metric": "accuracy", "value": value, "metrics": {"loss": 1 - value}, "parameters": {"trained": 10}}
    return found if test is None else found | {"test": {"accuracy": test}}


def test_cells_times_seeds_in_order_each_in_its_folder() -> None:
    trained: list[tuple[int, str]] = []
    said: list[tuple[int, int, str]] = []

    def train(options: TrainOptions, run: Path) -> dict[str, Any]:
        trained.append((options.seed, str(run)))
        return result(options.seed / 10)

    cells = {"a": OPTIONS, "b": OPTIONS.updated({"r": 2})}
    outcomes = train_grid(cells, Path("f"), [3, 4], train, lambda number, count, run: said.append((number, count, str(run))))
    places = [(3, "f/a/seed-3"), (4, "f/a/seed-4"), (3, "f/b/seed-3"), (4, "f/b/seed-4")]
    assert trained == places
    assert said == [(i, 4, place) for i, (_, place) in enumerate(places, 1)]
    assert [(outcome.name, outcome.values) for outcome in outcomes] == [("a", [0.3, 0.4]), ("b", [0.3, 0.4])]
    assert outcomes[0].mean == pytest.approx(0.35)
    assert outcomes[0].losses == pytest.approx([0.7, 0.6])
    trained.clear()
    train_grid(cells, Path("f"), None, train)
    assert trained == [(7, "f/a"), (7, "f/b")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunError])
def test_a_failure_ends_the_grid_where_it_is(error: type[BaseException]) -> None:
    seen: list[str] = []

    def train(options: TrainOptions, run: Path) -> dict[str, Any]:
        seen.append(run.name)
        raise error("stopped")

    with pytest.raises(error):
        train_grid({"a": OPTIONS, "b": OPTIONS}, Path("f"), None, train)
    assert seen == ["a"]


def test_a_missing_package_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    cells = {"a": OPTIONS, "b": OPTIONS.updated({"method": "prefix"})}
    with pytest.raises(RunError, match="method=prefix needs the package peft"):
        train_grid(cells, Path("f"), None, lambda options, run: pytest.fail("something was trained"))


def test_values_are_of_test_rows_where_there_are_some() -> None:
    assert (Outcome("a", (result(0.5, 0.25),)).values, Outcome("a", (result(0.5, 0.25),)).scored_on) == ([0.25], "test")
    one = Outcome("a", (result(0.5),))
    assert (one.values, one.scored_on, one.spread, one.trained, one.metric) == ([0.5], "evaluation", 0.0, 10, "accuracy")
    assert Outcome("a", (result(0.5), result(0.7))).spread == pytest.approx(0.1414, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gets_what_acts_with_it_and_its_own(method: Method) -> None:
    shared = {"model": "m", "data": "d.tsv", "r": 3, "prefix_length": 4, "batch_size": 5}
    made = of_method(shared, method, {"learning_rate": 0.5})
    assert (made.method, made.batch_size, made.learning_rate) == (method, 5, 0.5)
    assert made.lora.r == (3 if method == "lora" else 8)
    assert made.prefix == (4 if method == "prefix" else 0)
    with pytest.raises(ConfigError, match="batch_size"):
        of_method(shared | {"batch_size": 0}, method, {})


def test_the_runner_knows_no_way_of_training() -> None:
    """What trains a run is given, so that another way can take its place."""
    assert not {"comparison", "apart", "run"} & {name for name in vars(grid)}
