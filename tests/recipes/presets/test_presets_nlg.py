"""Every number of the recipes for GPT-2 is what the paper and its scripts print, and resolves into a run."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from loralib.cli import main
from loralib.errors import ConfigError
from loralib.recipes import presets, training
from loralib.recipes.options import TrainOptions
from loralib.recipes.presets import nlg
from loralib.recipes.presets.nlg import DECODING, LARGE, MEDIUM, TABLES, TRAINING_ROWS, Decoding

# Table 11 as it is printed: what all tasks share, and a column a task.
SHARED = {
    "Optimizer": "AdamW",
    "Batch Size": "8",
    "# Epoch": "5",
    "Warmup Steps": "500",
    "Learning Rate Schedule": "Linear",
    "Label Smooth": "0.1 0.1 0.0",
    "Learning Rate": "0.0002",
    "Adaptation": "rq = rv = 4",
    "LoRA alpha": "32",
    "Beam Size": "10",
    "no repeat ngram size": "4",
}
COLUMNS = {
    "task": "e2e webnlg dart",
    "Weight Decay": "0.01 0.01 0.0",
    "Dropout Prob": "0.1 0.1 0.0",
    "Label Smooth": "0.1 0.1 0.0",
    "Length Penalty": "0.9 0.8 0.8",
}
TABLE_11 = [dict(zip(COLUMNS, column, strict=True)) for column in zip(*(row.split() for row in COLUMNS.values()), strict=True)]
# The command of loralib 0.1's README: `--train_batch_size 8 --seq_len 512 …`, and of its decoding.
TRAINING = (
    "train_batch_size 8 grad_acc 1 seq_len 512 clip 0.0 lr 0.0002 weight_decay 0.01 correct_bias adam_beta2 0.999 "
    "scheduler linear warmup_step 500 max_epoch 5 lora_dim 4 lora_alpha 32 lora_dropout 0.1 label_smooth 0.1 random_seed 110"
)
DECODED = "eval_len 64 beam 10 length_penalty 0.8 no_repeat_ngram_size 4"
MODELS = [MEDIUM, LARGE]
TASKS = ["e2e", "webnlg", "dart"]
PRESETS = ["paper", "scripts"]


def options(preset: str, task: str, model: str, **given: Any) -> TrainOptions:
    return TrainOptions.of(presets.resolve(preset, task, model).updated({"task": task, "model": model} | given))


def said(words: str, name: str) -> float:
    parts = words.split()
    return float(parts[parts.index(name) + 1])


def test_there_is_a_recipe_for_every_preset_and_task() -> None:
    assert set(TABLES) == set(DECODING) == set(get_args(presets.PresetName)) == set(PRESETS)
    assert all(set(TABLES[preset]) == set(DECODING[preset]) == set(TASKS) for preset in TABLES)
    assert [column["task"] for column in TABLE_11] == list(nlg.TASKS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("column", TABLE_11, ids=lambda column: column["task"])
def test_every_number_of_the_paper_is_the_printed_one(column: dict[str, str], model: str) -> None:
    chosen = options("paper", column["task"], model)
    assert (chosen.batch_size, chosen.num_train_epochs, chosen.warmup_steps) == tuple(
        int(SHARED[name]) for name in ("Batch Size", "# Epoch", "Warmup Steps")
    )
    assert chosen.peak_learning_rate == float(SHARED["Learning Rate"])
    assert (chosen.method, chosen.roles, chosen.lora.r, chosen.lora.lora_alpha) == ("lora", ["query", "value"], 4, 32.0)
    assert (chosen.weight_decay, chosen.lora.lora_dropout, chosen.label_smoothing_factor) == tuple(
        float(column[name]) for name in ("Weight Decay", "Dropout Prob", "Label Smooth")
    )
    decoding = DECODING["paper"][column["task"]]
    assert decoding == Decoding(10, float(column["Length Penalty"]), 4, 64)
    assert (str(decoding.beams), str(decoding.no_repeat_ngram)) == (SHARED["Beam Size"], SHARED["no repeat ngram size"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_every_number_of_the_scripts_is_the_published_one(task: str, model: str) -> None:
    chosen, decoding = options("scripts", task, model), DECODING["scripts"][task]
    for name, value in (
        ("train_batch_size", chosen.batch_size),
        ("seq_len", chosen.length),
        ("clip", chosen.max_grad_norm),
        ("lr", chosen.peak_learning_rate),
        ("warmup_step", chosen.warmup_steps),
        ("max_epoch", chosen.num_train_epochs),
        ("lora_dim", chosen.lora.r),
        ("lora_alpha", chosen.lora.lora_alpha),
        ("random_seed", chosen.seed),
    ):
        assert value == said(TRAINING, name)
    if task == "e2e":
        assert (chosen.weight_decay, chosen.lora.lora_dropout, chosen.label_smoothing_factor) == tuple(
            said(TRAINING, name) for name in ("weight_decay", "lora_dropout", "label_smooth")
        )
    assert (chosen.base_dropout, chosen.adam_epsilon) == (0.0, 1e-6)
    assert (decoding.max_new_tokens, decoding.beams, decoding.length_penalty, decoding.no_repeat_ngram) == tuple(
        said(DECODED, name) for name in ("eval_len", "beam", "length_penalty", "no_repeat_ngram_size")
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_the_two_recipes_train_alike_but_for_the_seed(task: str, model: str) -> None:
    paper, scripts = options("paper", task, model).to_dict(), options("scripts", task, model).to_dict()
    assert {name for name in paper if paper[name] != scripts[name]} == {"seed"}
    recipe = presets.resolve("paper", task, model)
    assert (recipe.seeds, recipe.average, recipe.start_from, recipe.reported) == (3, "mean", None, None)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_trainer_is_told_the_same_on_any_number_of_devices(preset: str, task: str, model: str, tmp_path: Path) -> None:
    chosen = options(preset, task, model, device_batch_size=4)
    for devices in (1, 2, 4, 8):
        told = training.argument_values(chosen, tmp_path, TRAINING_ROWS[task], devices)
        assert told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] * devices == 8
        assert told["per_device_train_batch_size"] <= 4
        assert (told["learning_rate"], told["lr_scheduler_type"], told["warmup_steps"]) == (2e-4, "linear", 500)
        assert (told["adam_epsilon"], told["max_grad_norm"], told["num_train_epochs"]) == (1e-6, 0.0, 5)
        assert told["weight_decay"] == (0.0 if task == "dart" else 0.01)
        assert (told["metric_for_best_model"], told["greater_is_better"]) == ("perplexity", False)
        assert told["load_best_model_at_end"]
    with pytest.raises(ConfigError, match="batch_size=8 cannot be split evenly"):
        training.argument_values(chosen, tmp_path, TRAINING_ROWS[task], 3)


def test_transformers_takes_the_arguments_and_keeps_the_betas_of_the_scripts(tmp_path: Path) -> None:
    arguments = training.arguments(options("paper", "e2e", MEDIUM), tmp_path, TRAINING_ROWS["e2e"])
    assert (arguments.adam_beta1, arguments.adam_beta2) == (0.9, said(TRAINING, "adam_beta2"))
    assert (arguments.warmup_steps, arguments.get_warmup_steps(26_290)) == (500, 500)
    assert arguments.optim.startswith("adamw")
    assert arguments.label_smoothing_factor == 0  # the loss smooths by itself, on completions


@pytest.mark.parametrize("model", ["gpt2-medium", "openai-community/gpt2-large", "/models/GPT2-Medium/"])
def test_a_model_is_known_by_the_last_part_of_its_name(model: str) -> None:
    assert options("paper", "e2e", model).lora.r == 4


def test_a_local_model_is_known_by_its_config(tmp_path: Path) -> None:
    for content, known in (
        ('{"model_type": "gpt2", "n_embd": 1024, "n_layer": 24}', True),
        ('{"model_type": "gpt2", "n_embd": 1280, "n_layer": 36}', True),
        ('{"model_type": "gpt2", "n_embd": 768, "n_layer": 12}', False),
        ('{"model_type": "roberta", "hidden_size": 1024, "num_hidden_layers": 24}', False),
        ('{"model_type": "gpt2"}', False),
        ("{", False),
    ):
        (tmp_path / "config.json").write_text(content)
        if known:
            assert presets.resolve("paper", "dart", str(tmp_path)).values["weight_decay"] == 0.0
        else:
            with pytest.raises(ConfigError, match="is none of them"):
                presets.resolve("paper", "dart", str(tmp_path))


@pytest.mark.parametrize(
    ("preset", "task", "model", "message"),
    [
        ("papers", "e2e", MEDIUM, "must be one of paper, scripts"),
        ("paper", "e2e", "gpt2", "knows gpt2-medium and gpt2-large, and gpt2 is none of them"),
        ("paper", "e2e", "roberta-base", "knows gpt2-medium and gpt2-large, and roberta-base is none of them"),
        ("paper", "mnli", MEDIUM, "and gpt2-medium is none of them"),
        ("paper", "e2e", None, "is none of them"),
        ("scripts", "totto", MEDIUM, "needs --task, one of mnli, .*, e2e, webnlg, dart; got totto"),
    ],
)
def test_what_there_is_no_recipe_for_is_refused(preset: str, task: str, model: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        presets.resolve(preset, task, model)


def test_the_users_own_words_take_the_place_of_the_recipes() -> None:
    assert options("paper", "e2e", MEDIUM, warmup_ratio=0.2).warmup_steps is None
    assert options("paper", "e2e", MEDIUM, target_modules="c_attn").layers is None
    chosen = options("scripts", "e2e", MEDIUM, seed=1, label_smoothing_factor=0.0, max_length=64)
    assert (chosen.seed, chosen.label_smoothing_factor, chosen.length, chosen.num_train_epochs) == (1, 0.0, 64, 5.0)


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "rows", "steps"), [("e2e", 42_061, 26_290), ("webnlg", 18_025, 11_270), ("dart", 62_659, 39_165)]
)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_dry_run_prints_the_exact_arguments_and_touches_nothing(
    preset: str, task: str, rows: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert steps == 5 * math.ceil(rows / 8)
    assert main(["train", "--task", task, "--preset", preset, "--model", MEDIUM, "--dry-run"]) == 0
    (stage,) = yaml.safe_load(capsys.readouterr().out)["would_train"]
    assert not list(tmp_path.iterdir())
    first = 0 if preset == "paper" else 110
    assert (stage["folder"], stage["seeds"]) == (f"runs/{task}-{preset}-gpt2-medium", [first, first + 1, first + 2])
    assert (stage["training_rows"], stage["steps"], stage["reported_by_the_paper"]) == (rows, steps, None)
    told, chosen = stage["trainer"], stage["options"]
    assert told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] * stage["devices"] == 8
    assert (told["warmup_steps"], told["adam_epsilon"], told["max_grad_norm"]) == (500, 1e-6, 0.0)
    assert (chosen["base_dropout"], chosen["max_length"], chosen["layers"]) == (0.0, 512, "query,value")
    assert chosen["label_smoothing_factor"] == (0.0 if task == "dart" else 0.1)


def test_a_dry_run_of_data_of_ones_own_is_told_to_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "gpt2", "--data", "d.jsonl", "--problem", "generation", "--dry-run"]
    assert main(["train", *words]) == 0
    (stage,) = yaml.safe_load(capsys.readouterr().out)["would_train"]
    assert (stage["trainer"]["metric_for_best_model"], stage["trainer"]["greater_is_better"]) == ("perplexity", False)
    assert (stage["trainer"]["learning_rate"], stage["seeds"]) == (2e-4, [0])


@pytest.mark.parametrize(("model", "factors"), [(MEDIUM, 393_216), (LARGE, 737_280), (f"openai-community/{MEDIUM}", 393_216)])
@pytest.mark.parametrize("more", [["--preset", "paper"], ["--preset", "scripts", "--task", "webnlg"], []])
def test_the_count_of_the_recipe_is_exact(
    model: str, factors: int, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """2·4·(1024 + 1024)·24, which the paper prints as 0.35M, and 2·4·(1280 + 1280)·36, as 0.77M."""
    assert main(["count", "--model", model, *more, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["lora"], counts["head"], counts["trained"], counts["r"]) == (factors, 0, factors, 4)
    assert counts["layers"] == (24 if "medium" in model else 36)
    assert counts["paper"] == ("0.35M" if "medium" in model else "0.77M")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gpt2-medium --task mnli", "gpt2-medium generates text; leave --task out, or give one of e2e, webnlg, dart"),
        ("roberta-base --task e2e", "roberta-base generates no text; leave --task out, or give one of"),
        ("gpt2 --preset paper", "gpt2 is none of them"),
        ("gpt2-medium --layers query,valeu", "'valeu' is none of query"),
    ],
)
def test_wrong_words_are_one_sentence(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "--model", *words.split()]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("query", 24 * 4 * 2 * 1024),
        ("query,key,value", 24 * 4 * 6 * 1024),
        ("output", 24 * 4 * 2 * 1024),
        ("mlp", 24 * 4 * 2 * (1024 + 4096)),
        ("query,output,mlp", 24 * 4 * (2 * 1024 + 2 * 1024 + 2 * (1024 + 4096))),
    ],
)
def test_layers_of_gpt2_are_counted_by_what_they_do(layers: str, expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "--model", MEDIUM, "--layers", layers, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lora"] == expected
