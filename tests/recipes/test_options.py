"""The options of a run are checked when they are made, and survive their YAML file."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from loralib.cli import dataclass_parsing
from loralib.config import LoRAConfig
from loralib.errors import ConfigError, LoRAError, RunError
from loralib.recipes import lora_options, resolved, run_folder, training
from loralib.recipes.options import TrainOptions


def options(**values: Any) -> TrainOptions:
    return TrainOptions.of({"model": "m", "data": "d.tsv"} | values)


@pytest.mark.parametrize(
    "values",
    [
        {"r": 0},
        {"r": -1},
        {"lora_alpha": 0},
        {"lora_dropout": 1.0},
        {"lora_dropout": -0.1},
        {"learning_rate": 0.0},
        {"num_train_epochs": 0},
        {"batch_size": 0},
        {"max_length": -1},
        {"max_train_rows": 0},
        {"eval_fraction": 1.0},
        {"eval_fraction": 0},
        {"weight_decay": -1.0},
        {"num_train_epochs": float("inf")},
        {"seed": -1},
        {"method": "last_layers"},
        {"problem": "regresion"},
        {"target_modules": ""},
        {"patience": 1, "best_epoch": False},
        {"save_steps": 5},
        {"warmup_steps": -1},
        {"head_dropout": 1.0},
        {"attention_dropout": -0.5},
        {"device_batch_size": 0},
        {"max_test_rows": -1, "test_data": "t.tsv"},
        {"layers": "query,valeu"},
        {"train_head": "none"},
        {"fp16": True, "bf16": True},
        {"gradient_accumulation_steps": 2, "device_batch_size": 8},
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        options(**values)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"method": "full", "r": 4}, "r"),
        ({"method": "full", "save_merged": True}, "save_merged"),
        ({"method": "last-layers", "target_modules": "query"}, "target_modules"),
        ({"task": "mrpc", "data": None, "text_column": "a"}, "text_column"),
        ({"task": "mrpc", "data": None, "problem": "regression"}, "problem"),
        ({"data_dir": "glue"}, "data_dir"),
        ({"train_split": "all"}, "train_split"),
        ({"eval_data": "e.tsv", "eval_fraction": 0.2}, "eval_fraction"),
        ({"data": "imdb", "eval_split": "test", "eval_fraction": 0.2}, "eval_fraction"),
        ({"method": "full", "train_head": "classifier"}, "train_head"),
        ({"method": "full", "init_adapter": "a"}, "init_adapter"),
        ({"target_modules": "query", "layers": "value"}, "layers"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "warmup_ratio"),
        ({"max_test_rows": 5}, "max_test_rows"),
        ({"test_data": "t.tsv", "test_split": "test"}, "test_split"),
        ({"task": "mrpc", "data": None, "test_data": "t.tsv"}, "test_data"),
    ],
)
def test_an_option_that_could_not_act_is_refused(values: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}=.*(no effect|give one)"):
        options(**values)


def test_a_run_knows_whether_its_inputs_are_pairs() -> None:
    assert options(task="mrpc", data=None).takes_pairs
    assert not options(task="sst2", data=None).takes_pairs
    assert options(text_pair_column="b").takes_pairs
    assert not options().takes_pairs


@pytest.mark.parametrize("values", [{"model": None}, {"data": None}, {"task": "sst2"}])
def test_a_model_and_one_source_of_data_must_be_named(values: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="--"):
        options(**values)


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


def test_layers_are_roles_joined_by_commas_and_query_and_value_unless_said() -> None:
    assert options().roles == ["query", "value"]
    assert options(layers="mlp, query").roles == ["mlp", "query"]
    assert options(layers=["key"]).roles == ["key"]


@given(st.integers(1, 512), st.integers(1, 16), st.none() | st.integers(1, 64))
def test_the_batch_is_kept_whatever_the_devices(batch_size: int, devices: int, most: int | None) -> None:
    chosen = options(batch_size=batch_size, device_batch_size=most)
    if batch_size % devices:
        with pytest.raises(ConfigError, match="cannot be split evenly"):
            training.share_of_batch(chosen, devices)
        return
    share, parts = training.share_of_batch(chosen, devices)
    assert share * parts * devices == batch_size
    assert share <= (most or batch_size)
    assert parts == 1 or most is not None


def test_rows_are_scored_at_the_end_only_where_some_are_kept_for_it() -> None:
    assert options(test_data="t.tsv").tests
    assert options(task="sst2", data=None, eval_fraction=0.1).tests
    assert not options(task="sst2", data=None).tests
    assert not options(eval_fraction=0.1).tests
    assert not options(test_data="t.tsv", max_test_rows=0).tests


def test_each_method_has_its_learning_rate_unless_one_is_given() -> None:
    rates = {options(method=method).peak_learning_rate for method in ("lora", "last-layers", "full")}
    assert len(rates) == 3
    assert options(learning_rate=0.5).peak_learning_rate == 0.5


def test_options_and_classes_survive_the_run_folder(tmp_path: Path) -> None:
    written = options(target_modules=["a", "b"], patience=3, lora_alpha=4.5)
    run_folder.write_options(tmp_path, written, ["no", "yes"])
    read, labels = run_folder.read_options(tmp_path)
    assert (resolved.resolved(read), labels) == (resolved.resolved(written), ["no", "yes"])
    assert "null" not in (tmp_path / "config.yaml").read_text()
    assert (read.peak_learning_rate, read.length, read.metric, read.roles, read.kind) == (
        written.peak_learning_rate,
        written.length,
        written.metric,
        written.roles,
        written.kind,
    )
    run_folder.write_options(tmp_path, read, labels)
    assert run_folder.read_options(tmp_path) == (read, labels)


def test_local_paths_are_made_absolute_and_names_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.tsv").touch()
    monkeypatch.chdir(tmp_path)
    assert options().with_absolute_paths() == options(data=str(tmp_path / "d.tsv"))


@pytest.mark.parametrize("content", ["", "[1]", "model: m", "a: [\nb", "model: m\ndata: d\nr: 0", "model: m\ndata: d\nr: x"])
def test_a_damaged_config_is_one_clear_error(tmp_path: Path, content: str) -> None:
    run_folder.write_options(tmp_path, options(), None)
    (tmp_path / run_folder.CONFIG).write_text(content)
    with pytest.raises(RunError, match=r"^[^\n]*damaged[^\n]*$"):
        run_folder.read_options(tmp_path)


def test_a_folder_that_no_run_wrote_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for flags in ({"overwrite": True, "resume": False}, {"overwrite": False, "resume": False}):
        with pytest.raises(LoRAError):
            run_folder.RUN.check_free(tmp_path, **flags)
    assert (tmp_path / "thesis.tex").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(RunError, match="is a file"), run_folder.RUN.alone_in(tmp_path / "out"):
        pass


@pytest.mark.parametrize("old", [{"r": 8}, {"epochs": 3.0}, {"label_smoothing": 0.1}])
def test_a_config_of_an_earlier_version_is_refused_by_name(tmp_path: Path, old: dict[str, Any]) -> None:
    run_folder.write_options(tmp_path, options(), None)
    config = tmp_path / run_folder.CONFIG
    config.write_text(yaml.safe_dump({"model": "m", "data": "d.tsv", **old}))
    for refused in (lambda: run_folder.read_options(tmp_path), lambda: parsed("--config", str(config))):
        with pytest.raises(
            RunError, match=rf"^[^\n]*has the option '{next(iter(old))}'[^\n]*LoRA's own stand under lora:[^\n]*$"
        ):
            refused()


def parsed(*words: str) -> dict[str, Any]:
    return dataclass_parsing.given(dataclass_parsing.dataclass_parser(TrainOptions, "loralib train", ""), words)


def test_every_field_of_lora_config_is_said_flat_and_nested_in_yaml(tmp_path: Path) -> None:
    words = {
        "r": "4", "lora_alpha": "2", "lora_dropout": "0.1", "target_modules": "query,value", "exclude_modules": "0.query",
        "modules_to_save": "pooler", "bias": "all", "rank_pattern": "{query: 2}", "alpha_pattern": "{query: 3}",
        "use_rslora": "true", "fan_in_fan_out": "false", "enable_lora": "[true, false]", "slice_widths": "{c: [2, 3]}",
    }  # fmt: skip
    assert words.keys() == set(lora_options.NAMES)
    flags = [word for name, value in words.items() for word in ("--" + name.replace("_", "-"), value)]
    chosen = TrainOptions.of(parsed("--model", "m", "--data", "d.tsv", *flags))
    assert chosen.lora == LoRAConfig(
        4, 2.0, 0.1, ["query", "value"], ["0.query"], ["pooler"], "all", {"query": 2}, {"query": 3}, True, False,
        [True, False], {"c": [2, 3]},
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_bytes(run_folder.as_yaml(chosen.to_dict()))
    assert TrainOptions.of(parsed("--config", str(path))) == chosen
    assert TrainOptions.of(parsed("--config", str(path), "--r", "5")).lora == replace(chosen.lora, r=5)


def test_options_that_mean_what_a_training_argument_means_have_its_name() -> None:
    ours, theirs = ({option.name for option in fields(kind)} for kind in (TrainOptions, TrainingArguments))
    assert {name for name in ours & theirs} == {
        *("adam_epsilon", "bf16", "fp16", "gradient_accumulation_steps", "label_smoothing_factor", "learning_rate"),
        *("max_grad_norm", "metric_for_best_model", "num_train_epochs", "per_device_eval_batch_size", "save_steps", "seed"),
        *("warmup_steps", "weight_decay"),
    }
