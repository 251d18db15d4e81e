"""LoRA's own options of a run: names and expressions from words, and every field said in either way."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from loralib.cli import dataclass_parsing
from loralib.config import LoRAConfig
from loralib.errors import ConfigError
from loralib.recipes import lora_options, run_folder
from loralib.recipes.options import TrainOptions


def options(**values: Any) -> TrainOptions:
    return TrainOptions.of({"model": "m", "data": "d.tsv"} | values)


def test_words_joined_by_commas_are_names_and_the_rest_are_expressions() -> None:
    assert options(target_modules="query,value").lora.target_modules == (
        "query",
        "value",
    )
    assert options(target_modules="attn.q").lora.target_modules == ("attn.q",)
    assert options(target_modules="query , value,").lora.target_modules == (
        "query",
        "value",
    )
    assert options(target_modules=r".*\.query").lora.target_modules == r".*\.query"
    assert options(target_modules="all-linear").lora.target_modules == "all-linear"
    assert options(target_modules=["a"]).lora.target_modules == ("a",)
    assert options().lora.target_modules == ()


def parsed(*words: str) -> dict[str, Any]:
    return dataclass_parsing.given(dataclass_parsing.dataclass_parser(TrainOptions, "loralib train"), words)


def test_every_field_of_lora_config_is_said_flat_and_nested_in_yaml(tmp_path: Path) -> None:
    words = {
        "r": "4", "lora_alpha": "2", "lora_dropout": "0.1", "target_modules": "query,value", "exclude_modules": "0.query",
        "modules_to_save": "pooler", "bias": "all", "rank_pattern": "{query: 2}", "alpha_pattern": "{query: 3}",
        "use_rslora": "true", "fan_in_fan_out": "false", "enable_lora": "[true, false]", "slice_widths": "{c: [2, 3]}",
        "target_parameters": "experts.w", "share_expert_factor": "A", "divide_expert_rank": "true",
    }  # fmt: skip
    assert words.keys() == set(lora_options.NAMES)
    flags = [word for name, value in words.items() for word in ("--" + name.replace("_", "-"), value)]
    chosen = TrainOptions.of(parsed("--model", "m", "--data", "d.tsv", *flags))
    assert chosen.lora == LoRAConfig(
        4, 2.0, 0.1, ["query", "value"], ["0.query"], ["pooler"], "all", {"query": 2}, {"query": 3}, True, False,
        [True, False], {"c": [2, 3]}, target_parameters=["experts.w"], share_expert_factor="A", divide_expert_rank=True,
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_bytes(run_folder.as_yaml(chosen.to_dict()))
    assert TrainOptions.of(parsed("--config", str(path))) == chosen
    assert TrainOptions.of(parsed("--config", str(path), "--r", "5")).lora == replace(chosen.lora, r=5)


def test_words_are_those_between_commas() -> None:
    assert lora_options.words(" a, b.c ,,d ") == ["a", "b.c", "d"]
    assert lora_options.words("") == []


def test_plain_values_are_read_again() -> None:
    config = LoRAConfig(r=3, target_modules=["a"], rank_pattern={"b": 2}, enable_lora=[True, False])
    assert lora_options.read(lora_options.plain(config)) == config
    assert lora_options.plain(lora_options.USUAL)["target_modules"] is None
    assert lora_options.read({}) == lora_options.USUAL
    assert lora_options.read({"target_modules": None}).target_modules == ()


@pytest.mark.parametrize("named", ["", [], ()])
def test_no_layers_are_refused(named: Any) -> None:
    with pytest.raises(ConfigError, match=r"target_modules=.*must name layers"):
        lora_options.read({"target_modules": named})


def test_every_option_has_a_help() -> None:
    assert lora_options.HELP.keys() == set(lora_options.NAMES) == {field.name for field in fields(LoRAConfig)}
    assert all(len(described) == 2 for described in lora_options.HELP.values())
