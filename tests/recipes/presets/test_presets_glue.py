"""Every preset is what the paper and its scripts print, and resolves into a run."""

from pathlib import Path
from typing import Any, get_args

import pytest

from loralib.architectures import PAPER_ENCODERS
from loralib.errors import ConfigError
from loralib.recipes import presets, training
from loralib.recipes.options import TrainOptions
from loralib.recipes.presets.glue import BASE, LARGE, TABLES, TASKS, TRAINING_ROWS, XXL
from loralib.recipes.presets.recipe import family_of

# The tables as they are printed, a cell a task: batch / epochs / learning rate, and what follows.
PRINTED = {
    ("paper", BASE): "16/30/5e-4 16/60/5e-4 16/30/4e-4 32/80/4e-4 32/25/4e-4 16/25/5e-4 32/80/5e-4 16/40/4e-4",
    ("paper", LARGE): (
        "4/10/3e-4/128 4/10/4e-4/128 4/20/3e-4/512 4/20/2e-4/128 4/10/2e-4/512 4/20/3e-4/512 8/20/4e-4/512 8/30/2e-4/512"
    ),
    ("paper", XXL): (
        "8/5/1e-4/256/0/.15 8/16/6e-5/128/.01/0 32/30/2e-4/128/.01/0 4/10/1e-4/64/0/.1 6/8/1e-4/512/.01/.1 "
        "8/11/1e-4/320/.01/.2 4/11/2e-4/320/.01/.2 4/10/2e-4/128/.1/.2"
    ),
    ("scripts", BASE): "128/30/5e-4 128/60/5e-4 128/30/4e-4 64/80/4e-4 256/25/4e-4 128/25/5e-4 256/80/5e-4 128/40/4e-4",
    ("scripts", LARGE): (
        "32/10/3e-4/128 64/10/4e-4/512 32/20/3e-4/512 32/20/3e-4/128 "
        "32/10/2e-4/512 32/20/3e-4/512 64/20/4e-4/512 32/10/3e-4/128"
    ),
    ("scripts", XXL): (
        "64/5/1e-4/256/0/.15/1000 64/16/6e-5/128/.01/0/1000 256/30/2e-4/128/.01/0/wr.1 32/10/1.3e-4/64/0/.1/100 "
        "48/8/1e-4/512/.01/.1/500 64/11/1e-4/320/.01/.2/10000 32/11/2.6e-4/320/.01/.2/50 32/10/2e-4/128/.1/.2/100"
    ),
}
ORDER = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"]
GPUS = {("scripts", BASE, "cola"): 2}
SHARED = {  # r, alpha, warm-up and weight decay where the columns do not say, length for RoBERTa-base
    ("paper", BASE): (8, 8, 0.06, 0.1),
    ("paper", LARGE): (8, 16, 0.06, 0.1),
    ("paper", XXL): (8, 8, 0.1, None),
    ("scripts", BASE): (8, 16, 0.06, 0.1),
    ("scripts", LARGE): (8, 16, 0.06, 0.1),
    ("scripts", XXL): (16, 32, None, None),
}
CELLS = [(*key, task, cell) for key, row in PRINTED.items() for task, cell in zip(ORDER, row.split(), strict=True)]
TABLE_2 = {
    BASE: "87.5±.3 95.1±.2 89.7±.7 63.4±1.2 93.3±.3 90.8±.1 86.6±.7 91.5±.2",
    LARGE: "90.6±.2 96.2±.5 90.9±1.2 68.2±1.9 94.9±.3 91.6±.1 87.4±2.5 92.6±.2",
    XXL: "91.9±.2 96.9±.2 92.6±.6 72.4±1.1 96.0±.1 92.9±.1 94.9±.4 93.0±.2",
}


def options(preset: str, task: str, model: str, **given: Any) -> TrainOptions:
    return TrainOptions.of(presets.resolve(preset, task, model).updated({"task": task, "model": model} | given))


def test_there_is_a_cell_for_every_preset_model_and_task() -> None:
    assert {key for key in TABLES} == set(PRINTED)
    assert tuple(ORDER) == TASKS
    assert len(CELLS) == 48


@pytest.mark.parametrize(("preset", "model", "task", "cell"), CELLS)
def test_every_number_is_the_printed_one(preset: str, model: str, task: str, cell: str) -> None:
    chosen = options(preset, task, model)
    batch, epochs, rate, *more = cell.split("/")
    r, alpha, warmup, decay = SHARED[preset, model]
    assert (chosen.batch_size, chosen.num_train_epochs, chosen.peak_learning_rate) == (int(batch), int(epochs), float(rate))
    assert (chosen.lora.r, chosen.lora.lora_alpha, chosen.lora.lora_dropout) == (r, alpha, 0.0)
    assert chosen.max_length == (int(more[0]) if more else 512)
    assert chosen.roles == ["query", "value"]
    if decay is not None:
        assert (chosen.weight_decay, chosen.warmup_ratio, chosen.head_dropout) == (decay, warmup, None)
    else:
        assert (chosen.weight_decay, chosen.head_dropout) == (float(more[1]), float(more[2]))
    if len(more) == 4:
        said = more[3]
        expected = (None, float(said[2:])) if said.startswith("wr") else (int(said), 0.06)
        assert (chosen.warmup_steps, chosen.warmup_ratio) == expected
    assert chosen.fp16 == (preset == "scripts" and model == XXL)
    metric = {"cola": "matthews", "stsb": "pearson"}.get(task, "accuracy")
    assert chosen.metric == metric


@pytest.mark.parametrize(("preset", "model", "task", "cell"), CELLS)
def test_the_trainer_is_told_the_same_on_any_number_of_devices(
    preset: str, model: str, task: str, cell: str, tmp_path: Path
) -> None:
    chosen, batch = options(preset, task, model), int(cell.split("/", maxsplit=1)[0])
    rows = TRAINING_ROWS[task]
    for devices in (1, 2, 3, 4, 8):
        if batch % devices:
            with pytest.raises(ConfigError, match="cannot be split evenly"):
                training.argument_values(chosen, tmp_path, rows, devices)
            continue
        told = training.argument_values(chosen, tmp_path, rows, devices)
        assert told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] * devices == batch
        assert told["learning_rate"] == float(cell.split("/")[2])
        assert told["num_train_epochs"] == int(cell.split("/")[1])
        assert told["lr_scheduler_type"] == "linear"
        assert told["load_best_model_at_end"]
        assert told["metric_for_best_model"] == chosen.metric
    if preset == "scripts":
        gpus = GPUS.get((preset, model, task), 8)
        on_theirs = training.argument_values(chosen, tmp_path, rows, gpus)
        assert on_theirs["gradient_accumulation_steps"] == 1
        alone = training.argument_values(chosen, tmp_path, rows, 1)
        assert alone["per_device_train_batch_size"] == on_theirs["per_device_train_batch_size"]


@pytest.mark.parametrize("model", TABLE_2)
def test_what_the_paper_reports(model: str) -> None:
    for task, cell in zip(ORDER, TABLE_2[model].split(), strict=True):
        recipe = presets.resolve("paper", task, model)
        assert recipe.reported == tuple(map(float, cell.split("±")))
        assert recipe.seeds == 5
        assert recipe.start_from == ("mnli" if task in ("mrpc", "rte", "stsb") else None)


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ({"warmup_ratio": 0.2}, "warmup_steps"),
        ({"gradient_accumulation_steps": 2}, "device_batch_size"),
        ({"bf16": True}, "fp16"),
    ],
)
def test_the_users_own_words_take_the_place_of_the_recipes(given: dict[str, Any], gone: str) -> None:
    chosen = options("scripts", "mnli", XXL, num_train_epochs=1, **given)
    assert chosen.num_train_epochs == 1
    assert all(getattr(chosen, name) == value for name, value in given.items())
    assert not getattr(chosen, gone)


@pytest.mark.parametrize(
    "name",
    ["roberta-base", "FacebookAI/roberta-base", "/models/RoBERTa-base/", "roberta-large", "microsoft/deberta-v2-xxlarge"],
)
def test_a_model_is_known_by_the_last_part_of_its_name(name: str) -> None:
    assert family_of(name, PAPER_ENCODERS) == name.rstrip("/").rpartition("/")[2].lower()


def test_a_local_model_is_known_by_its_config(tmp_path: Path) -> None:
    for content, family in (
        ('{"model_type": "roberta", "hidden_size": 1024, "num_hidden_layers": 24}', LARGE),
        ('{"model_type": "roberta", "hidden_size": 32, "num_hidden_layers": 2}', None),
        ('{"model_type": "bert"}', None),
        ("[1]", None),
        ("{", None),
    ):
        (tmp_path / "config.json").write_text(content)
        assert family_of(str(tmp_path), PAPER_ENCODERS) == family


@pytest.mark.parametrize(
    ("preset", "task", "model", "message"),
    [
        ("papers", "mnli", BASE, "must be one of paper, scripts"),
        ("paper", "wnli", BASE, "needs --task, one of mnli, .*; got wnli"),
        ("paper", None, BASE, "needs --task"),
        ("paper", "mnli", "bert-base-uncased", "bert-base-uncased is none of them"),
        ("paper", "mnli", None, "is none of them"),
    ],
)
def test_what_there_is_no_recipe_for_is_refused(preset: str, task: str | None, model: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        presets.resolve(preset, task, model)


def test_the_names_of_presets_are_those_of_the_tables() -> None:
    assert {name for name, _ in TABLES} == set(get_args(presets.PresetName))
