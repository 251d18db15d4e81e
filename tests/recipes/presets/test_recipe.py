"""One recipe as a value, and for which of the paper's models it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from loralib.recipes.presets.recipe import Preset, family_of, no_family

SHAPES = {("roberta", 768, 12): "roberta-base", ("gpt2", 1024, 24): "gpt2-medium"}
RECIPE = Preset({"r": 8, "warmup_ratio": 0.06, "layers": "query", "device_batch_size": 4, "fp16": True}, 5, "median")


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ({"r": 4}, set()),
        ({"seed": 3}, set()),
        ({"warmup_steps": 10}, {"warmup_ratio"}),
        ({"warmup_steps": None}, set()),
        ({"target_modules": ["q"]}, {"layers"}),
        ({"gradient_accumulation_steps": 2, "bf16": True}, {"device_batch_size", "fp16"}),
    ],
)
def test_the_users_own_values_replace_the_recipes_and_those_that_they_contradict(given: dict[str, Any], gone: set[str]) -> None:
    found = RECIPE.updated(given)
    assert found == {name: value for name, value in RECIPE.values.items() if name not in gone} | given
    assert RECIPE.values["r"] == 8


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("roberta-base", "roberta-base"),
        ("FacebookAI/RoBERTa-base", "roberta-base"),
        ("/models/gpt2-medium/", "gpt2-medium"),
        ("gpt2-large", None),
        ("my-roberta-base", None),
        ("", None),
    ],
)
def test_a_model_is_known_by_the_last_part_of_its_name(name: str, family: str | None) -> None:
    assert family_of(name, SHAPES) == family


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "roberta", "hidden_size": 768, "num_hidden_layers": 12}, "roberta-base"),
        ({"model_type": "gpt2", "n_embd": 1024, "n_layer": 24}, "gpt2-medium"),
        ({"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12}, None),
        ({"model_type": "roberta", "hidden_size": 1024, "num_hidden_layers": 12}, None),
        ({"model_type": "roberta", "hidden_size": [768], "num_hidden_layers": 12}, None),
        ({"hidden_size": 768, "num_hidden_layers": 12}, None),
        ({"model_type": "roberta", "hidden_size": 768}, None),
        ([1], None),
        ("{", None),
    ],
)
def test_a_local_model_is_known_by_its_configuration(config: Any, family: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config if config == "{" else json.dumps(config))
    assert family_of(str(tmp_path), SHAPES) == family


def test_a_model_without_a_recipe_is_told_which_there_are() -> None:
    said = str(no_family("paper", "bert", ["a", "b", "c"]))
    assert said.startswith("--preset paper knows a, b and c, and bert is none of them; leave --preset out")
