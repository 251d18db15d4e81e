"""The options of a run are checked when they are made, and survive their YAML file."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from loralib.errors import ConfigError, RunError
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
        {"save_steps": 0},
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


def test_layers_are_roles_joined_by_commas_and_query_and_value_unless_said() -> None:
    assert options().roles == ["query", "value"]
    assert options(layers="mlp, query").roles == ["mlp", "query"]
    assert options(layers=["key"]).roles == ["key"]


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


def test_local_paths_are_made_absolute_and_names_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.tsv").touch()
    monkeypatch.chdir(tmp_path)
    assert options().with_absolute_paths() == options(data=str(tmp_path / "d.tsv"))


def test_options_that_mean_what_a_training_argument_means_have_its_name() -> None:
    ours, theirs = ({option.name for option in fields(kind)} for kind in (TrainOptions, TrainingArguments))
    assert {name for name in ours & theirs} == {
        *("adam_epsilon", "bf16", "fp16", "gradient_accumulation_steps", "label_smoothing_factor", "learning_rate"),
        *("max_grad_norm", "metric_for_best_model", "num_train_epochs", "per_device_eval_batch_size", "save_steps", "seed"),
        *("warmup_steps", "weight_decay", "eval_steps", "gradient_checkpointing", "lr_scheduler_type", "optim", "report_to"),
    }


def test_what_is_left_to_the_model_is_as_a_run_settled_it() -> None:
    asked = TrainOptions.of({"model": "m", "data": "d.jsonl", "problem": "chat"})
    run = asked.updated({"learning_rate": 3e-4, "chat_template": "tokenizer", "layout": "messages"})
    assert asked.settled_as(run) == run
    other = asked.updated({"learning_rate": 1e-4, "chat_template": "plain", "layout": "text"})
    assert other.settled_as(run) == other


def test_a_word_for_a_template_is_not_taken_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plain", "own.jinja"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    for given, kept in (("plain", "plain"), ("own.jinja", str(tmp_path / "own.jinja"))):
        assert options(problem="chat", data="d.jsonl", chat_template=given).with_absolute_paths().chat_template == kept
