"""From the options of a run to Trainer's arguments."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from loralib.errors import ConfigError
from loralib.recipes import training
from loralib.recipes.options import TrainOptions


def options(**values: Any) -> TrainOptions:
    return TrainOptions.of({"model": "m", "data": "d.tsv"} | values)


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


def test_a_batch_is_cut_into_the_fewest_equal_parts_that_a_device_can_hold() -> None:
    shares = [training.share_of_batch(options(batch_size=12, device_batch_size=most), 1) for most in (12, 11, 6, 5, 1)]
    assert shares == [(12, 1), (6, 2), (6, 2), (4, 3), (1, 12)]
    assert training.share_of_batch(options(batch_size=12, gradient_accumulation_steps=3), 2) == (2, 3)
    with pytest.raises(ConfigError, match=r"devices: 2, gradient_accumulation_steps: 4\); make it a multiple of 8"):
        training.share_of_batch(options(batch_size=12, gradient_accumulation_steps=4), 2)


def test_options_become_trainers_arguments(tmp_path: Path) -> None:
    values = training.argument_values(options(warmup_ratio=0.1, seed=7), tmp_path, 1000, 1)
    assert (values["warmup_steps"], values["seed"], values["logging_steps"]) == (0.1, 7, 7)
    assert (values["save_strategy"], values["load_best_model_at_end"], values["greater_is_better"]) == ("epoch", True, True)
    assert Path(values["output_dir"]).parent == tmp_path
    assert all(values[name] == getattr(options(seed=7), name) for name in training.SAME)
    by_steps = training.argument_values(options(eval_steps=5, warmup_steps=3), tmp_path, 10, 1)
    assert (by_steps["save_strategy"], by_steps["save_steps"], by_steps["warmup_steps"]) == ("steps", 5, 3)
    last = training.argument_values(options(best_epoch=False, eval_steps=5), tmp_path, 10, 1)
    assert (last["load_best_model_at_end"], last["save_strategy"], last["logging_steps"]) == (False, "epoch", 1)
    assert training.argument_values(options(), tmp_path, 10**6, 1)["logging_steps"] == 10
    assert (
        training.argument_values(options(group_by_length=True), tmp_path, 9, 1)["train_sampling_strategy"] == "group_by_length"
    )
    generation = training.argument_values(options(problem="generation", data="d.jsonl"), tmp_path, 9, 1)
    assert (generation["metric_for_best_model"], generation["greater_is_better"]) == ("perplexity", False)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_what_the_devices_here_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="fp16=True: needs a GPU"):
        training.arguments(options(fp16=True), tmp_path, 9)
    monkeypatch.setattr(training.ops.onednn, "available", lambda: False)
    with pytest.raises(ConfigError, match="onednn=True: must run on a CPU"):
        training.arguments(options(onednn=True), tmp_path, 9)
    assert training.arguments(options(), tmp_path, 9).use_cpu


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What timing would find; how often it was asked."""
    found: dict[str, Any] = {"gain": 1.9, "asked": 0}

    def gain(model: Any) -> float | None:
        found["asked"] += 1
        return found["gain"]

    monkeypatch.setattr(training.ops.measured, "gain", gain)
    monkeypatch.setattr(training.ops.onednn, "available", lambda: True)
    monkeypatch.setattr(training.torch.accelerator, "is_available", lambda: False)
    return found


@pytest.mark.parametrize(
    ("gain", "taken", "notes"),
    [
        (1.9, True, ["oneDNN computes the frozen products, 1.90 times as fast as torch's default here"]),
        (1.1, False, ["torch's default products are used: oneDNN's are 1.10 times as fast here, too little to choose them"]),
        (None, False, []),
    ],
)
def test_onednn_is_taken_where_timing_finds_it_faster(
    gain: float | None, taken: bool, notes: list[str], timed: dict[str, Any]
) -> None:
    timed["gain"] = gain
    found, said = training.with_kernel(options(), nn.Linear(2, 2))
    assert (found, said) == (options(onednn=taken), notes)
    assert timed["asked"] == 1


@pytest.mark.parametrize(
    ("values", "onednn"),
    [({"onednn": True}, True), ({"onednn": False}, False), ({"method": "full"}, False), ({"bf16": True}, False)],
)
def test_nothing_is_timed_where_there_is_nothing_to_choose(values: dict[str, Any], onednn: bool, timed: dict[str, Any]) -> None:
    assert training.with_kernel(options(**values), nn.Linear(2, 2)) == (options(**values | {"onednn": onednn}), [])
    assert not timed["asked"]


def test_a_build_without_onednn_says_so(timed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.ops.onednn, "available", lambda: False)
    timed["gain"] = None
    found, said = training.with_kernel(options(), nn.Linear(2, 2))
    assert (found.onednn, said) == (False, ["this build of torch has no oneDNN: its default products are used"])


def test_scores_are_those_asked_for_by_their_plain_names() -> None:
    trainer: Any = SimpleNamespace(
        predict=lambda rows: SimpleNamespace(metrics={"test_f1": 0.5, "test_loss": 1.0, "test_n": rows})
    )
    assert training.score(trainer, ["f1", "n"], 3) == {"f1": 0.5, "n": 3}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"report_to": "nosuch"}, "does not take these options: nosuch is not supported"),
        ({"optim": "nosuch"}, "nosuch is not a valid OptimizerNames"),
        ({"lr_scheduler_type": "nosuch"}, "nosuch is not a valid SchedulerType"),
    ],
)
def test_names_that_transformers_does_not_know(values: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        training.arguments(options(**values), tmp_path, 9)


@pytest.mark.parametrize("values", [{"report_to": "wandb"}, {"optim": "adamw_8bit"}])
def test_packages_that_are_not_installed(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tracker or an optimizer needs is found missing before training."""

    def missing(*arguments: Any) -> Any:
        raise (RuntimeError if "report_to" in values else ImportError)("it needs a package")

    if "report_to" in values:
        monkeypatch.setattr(training, "get_reporting_integration_callbacks", lambda names: [missing])
    else:
        monkeypatch.setattr(training.Trainer, "get_optimizer_cls_and_kwargs", missing)
    with pytest.raises(ConfigError, match="it needs a package"):
        training.arguments(options(**values), tmp_path, 9)
