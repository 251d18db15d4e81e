"""Numbers that are not finite: in labels they are refused, in the log of a run they cost nothing."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import TrainerCallback

from loralib.errors import DataError
from loralib.recipes import run_folder
from loralib.recipes.nlu import inputs, readers
from loralib.recipes.options import TrainOptions
from loralib.recipes.run import Interrupted, train
from recipes.conftest import labelled

pytest_plugins = ["recipes.conftest"]

NOT_FINITE = [math.nan, math.inf, -math.inf]


def no_constant(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("problem", ["classification", "regression"])
def test_a_json_label_that_is_not_finite_is_refused_with_its_place(written: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"text": "a", "label": 1.5}}\n{{"text": "b", "label": {written}}}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: 'label' is -?(nan|inf); give the row a label\."):
        readers.read_file(path, "text", "label")


@pytest.mark.parametrize("written", ["NaN", "nan", "inf", "-Infinity", "1e999"])
def test_a_label_of_text_that_is_not_finite_is_no_number(written: str) -> None:
    with pytest.raises(DataError, match=f"the label '{written}' of the text 'b' is not a number, and regression needs numbers"):
        inputs.targets(labelled("x", ["a", "b"], ["1.0", written]), None)


@pytest.mark.parametrize("written", ["1e39", "-3.5e38", "1e38", "-2e19", "1.1e15"])
def test_a_label_whose_squared_error_overflows_is_refused_by_name(written: str) -> None:
    message = f"the label '{written}' of the text 'b' is too large: squared errors overflow float32; scale the labels"
    with pytest.raises(DataError, match=message):
        inputs.targets(labelled("x", ["a", "b"], ["1.0", written]), None)


def test_the_squared_errors_of_a_batch_of_the_largest_labels_are_finite() -> None:
    largest = inputs.targets(labelled("x", ["a", "b"], ["1e15", "-1e15"]), None)
    labels = torch.tensor(largest * 64, dtype=torch.float32)
    assert bool(torch.nn.functional.mse_loss(-labels, labels).isfinite())
    assert not bool(torch.nn.functional.mse_loss(torch.zeros(1), torch.tensor([2e19])).isfinite())


@pytest.mark.parametrize("written", ["NaN", "inf", "1e999"])
def test_among_classes_that_are_numbers_it_is_no_class(written: str) -> None:
    with pytest.raises(DataError, match=f"x has the label '{written}' among numbers; give each of its rows a class"):
        inputs.label_names(labelled("x", ["a", "b", "c"], ["0", "1", written]))
    assert inputs.label_names(labelled("x", ["a", "b"], ["finite", "inf"])) == ["finite", "inf"]


class Spoil(TrainerCallback):
    """Logs a gradient norm as float16's loss scaling makes them, and is stopped at a step."""

    def __init__(self, norm: float, stop: int | None = None):
        self.norm, self.stop = norm, stop

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[-1]["grad_norm"] = self.norm

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.stop:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("norm", NOT_FINITE)
def test_a_run_ends_and_is_gone_on_with_whatever_its_log_holds(
    norm: float, encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    values = {"data": str(reviews / "train.tsv"), "eval_data": str(reviews / "test.tsv"), "lora": {"r": 2}}
    options = TrainOptions.of({"model": str(encoder), "num_train_epochs": 2, "batch_size": 16, **values})
    console = Console(file=io.StringIO())
    with pytest.raises(Interrupted):
        train(options, tmp_path / "run", console=console, callbacks=[Spoil(norm, stop=20)])
    state = next((tmp_path / "run" / run_folder.CHECKPOINTS).glob("*/trainer_state.json"))
    assert "grad_norm" in state.read_text()
    train(options, tmp_path / "run", resume=True, console=console, callbacks=[Spoil(norm)])
    found = json.loads((tmp_path / "run" / run_folder.METRICS).read_text(), parse_constant=no_constant)
    norms = [row["grad_norm"] for row in found["history"] if "loss" in row]
    assert norms
    assert set(norms) == {None}
