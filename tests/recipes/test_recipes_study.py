"""A study trains each cell by its method, and finds a model that is not for one of them before it begins."""

from pathlib import Path
from typing import Any

import pytest
from transformers import DistilBertConfig, LlamaConfig

from loralib.errors import ConfigError
from loralib.recipes.options import TrainOptions
from loralib.recipes.studies import Cell
from loralib.recipes.study import check_methods, train_study


def test_a_cell_has_what_all_share_then_its_methods_then_its_own() -> None:
    seen: dict[str, TrainOptions] = {}

    def train(options: TrainOptions, run: Path) -> dict[str, Any]:
        seen[str(run)] = options
        return {"metric": "accuracy", "value": 0.5, "seed": options.seed}

    cells = [
        Cell("a", {"r": 2}, {"r": 2}),
        Cell("b", {"rows": 5}, {"method": "full", "max_train_rows": 5, "learning_rate": 3.0}),
    ]
    shared = {"model": "m", "data": "d.tsv", "lora_alpha": 4.0, "r": 16}
    own: Any = {"lora": {"learning_rate": 1.0}, "full": {"learning_rate": 2.0}}
    lines = train_study(cells, shared, own, Path("f"), [0, 1], train)
    assert [line.cell for line in lines] == cells
    assert [[run["seed"] for run in line.outcome.results] for line in lines] == [[0, 1], [0, 1]]
    assert list(seen) == ["f/a/seed-0", "f/a/seed-1", "f/b/seed-0", "f/b/seed-1"]
    a, b = seen["f/a/seed-0"], seen["f/b/seed-1"]
    assert (a.method, a.lora.r, a.lora.lora_alpha, a.learning_rate) == ("lora", 2, 4.0, 1.0)
    assert (b.method, b.max_train_rows, b.learning_rate, b.seed) == ("full", 5, 3.0, 1)


def test_a_model_that_is_not_for_a_method_is_found_by_its_config(tmp_path: Path, encoder: Path) -> None:
    LlamaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "llama")
    DistilBertConfig(vocab_size=9, dim=8, n_layers=1, n_heads=2, hidden_dim=12).save_pretrained(tmp_path / "distilbert")

    def options(model: Path, **values: Any) -> TrainOptions:
        return TrainOptions.of({"model": str(model), "data": "d.jsonl", **values})

    with pytest.raises(ConfigError, match="a llama model, has no biases to train"):
        check_methods(options(tmp_path / "llama", problem="generation"), ["lora", "bitfit"])
    with pytest.raises(ConfigError, match="a distilbert model, takes no keys and values"):
        check_methods(options(tmp_path / "distilbert"), ["prefix"])
    check_methods(options(tmp_path / "distilbert"), ["lora", "full", "bitfit"])
    check_methods(options(encoder), ["bitfit", "prefix"])
    check_methods(options(tmp_path / "nowhere"), ["lora", "full"])
