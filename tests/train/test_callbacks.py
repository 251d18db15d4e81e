"""What a person sees while training runs, what Ctrl-C does, and how a loss that is not a number ends it."""

import io
import math
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import TrainerControl

import loralib as lora
from loralib.errors import RunError
from loralib.train.callbacks import CheckTrained, ProgressBar, SaveEvery, StopOnInterrupt, StopOnNonFinite, TensorBoardLog
from models import mlp


class OneIdle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


def said_of(model: nn.Module, main: bool = True, steps: int = 1, backward: bool = True) -> str:
    console = Console(file=io.StringIO(), width=500)
    callback = CheckTrained(console)
    for _ in range(steps):
        if backward:
            model(torch.randn(2, 4)).sum().backward()
        callback.on_pre_optimizer_step(None, SimpleNamespace(is_world_process_zero=main), None, model=model)
    return console.file.getvalue()


def with_lora(model: nn.Module) -> nn.Module:
    lora.inject(model, lora.LoRAConfig(r=2))
    lora.mark_only_lora_as_trainable(model)
    return model


@pytest.mark.parametrize("steps", [1, 3])
def test_what_the_first_backward_pass_did_not_reach_is_named_once(steps):
    said = said_of(with_lora(OneIdle()), steps=steps)
    assert said.count("warning: 2 LoRA factors do not train: idle.lora_A: it has no gradient") == 1
    assert "used" not in said


@pytest.mark.parametrize(
    "how", [{"model": mlp(4, 3)}, {"model": with_lora(mlp(4, 3))}, {"main": False}, {"backward": False}], ids=str
)
def test_nothing_is_said_otherwise(how):
    assert said_of(**{"model": with_lora(OneIdle())} | how) == ""


BOTH = (signal.SIGINT, signal.SIGTERM)
ARGS = SimpleNamespace(world_size=1, num_train_epochs=3.0)


@pytest.fixture
def stop():
    """The callback, with the signals taken over."""
    callback = StopOnInterrupt()
    callback.on_train_begin(ARGS, None, None)
    callback.on_step_begin(ARGS, None, None)
    yield callback
    callback.close()


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in BOTH]


def test_ctrl_c_that_comes_as_both_signals_is_one_and_a_second_ends_at_once(stop, capfd):
    for number in BOTH:
        signal.raise_signal(number)
    assert capfd.readouterr().err.count("Finishing this step") == 1
    for number in BOTH:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_before_the_first_step_it_ends_at_once(capfd):
    callback = StopOnInterrupt()
    callback.on_train_begin(ARGS, None, None)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)  # the same one, passed on: what cleans up is not disturbed
    callback.close()
    assert not capfd.readouterr().err


def test_ctrl_c_is_heard_though_nothing_can_be_said_of_it(stop, monkeypatch):
    """Standard error may be closed, or its disk full."""

    def closed(descriptor: int, content: bytes) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("loralib.train.callbacks.os.write", closed)
    signal.raise_signal(signal.SIGINT)
    control = TrainerControl()
    stop.on_step_end(ARGS, SimpleNamespace(epoch=0.5, global_step=1, max_steps=9), control)
    assert control.should_training_stop
    assert control.should_save


def test_signals_are_given_back_once_and_never_taken_in_another_thread():
    before, callback = handlers(), StopOnInterrupt()
    thread = threading.Thread(target=callback.on_train_begin, args=(ARGS, None, None))
    thread.start()
    thread.join()
    assert handlers() == before
    callback.on_train_begin(ARGS, None, None)
    assert all(handler not in before for handler in handlers())
    for _ in range(2):
        callback.close()
        assert handlers() == before


@pytest.mark.parametrize(
    ("epoch", "step", "whole"), [(0.5, 5, False), (1.0, 10, True), (2.7, 30, True)], ids=["within", "ends an epoch", "the last"]
)
@pytest.mark.parametrize("pressed", [False, True])
def test_a_step_that_is_finished_ends_training_and_what_was_cut_short_is_saved_not_evaluated(epoch, step, whole, pressed, stop):
    if pressed:
        signal.raise_signal(signal.SIGINT)
    state, control = SimpleNamespace(epoch=epoch, global_step=step, max_steps=30), TrainerControl(should_evaluate=True)
    stop.on_step_end(ARGS, state, control)
    assert (stop.requested, control.should_training_stop) == (pressed, pressed)
    assert (stop.cut_short, control.should_save) == (pressed and not whole,) * 2
    control.should_save = False
    stop.on_epoch_end(ARGS, state, control)
    assert control.should_evaluate is not stop.cut_short
    assert control.should_save == (pressed and whole)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_norm_is_kept_as_none_and_a_loss_ends_training(value):
    logged = {"loss": 0.5, "grad_norm": value, "step": 1}
    state, how = SimpleNamespace(log_history=[{"loss": 1.0}, logged], global_step=1), SimpleNamespace(learning_rate=0.1)
    StopOnNonFinite().on_log(how, state, None, logs=logged)
    assert state.log_history == [{"loss": 1.0}, {"loss": 0.5, "grad_norm": None, "step": 1}]
    for name in ("loss", "eval_loss"):
        with pytest.raises(RunError, match="lower the learning rate"):
            StopOnNonFinite().on_log(how, state, None, logs={name: value})


def bar_of(console: Console, **values: Any) -> tuple[ProgressBar, Any]:
    state = SimpleNamespace(**{"global_step": 5, "max_steps": 30, "epoch": 0.5, "is_world_process_zero": True} | values)
    bar = ProgressBar(console, "accuracy")
    bar.on_train_begin(ARGS, state, None)
    return bar, state


def test_the_bar_goes_on_from_where_training_does_and_shows_step_epoch_and_loss():
    bar, state = bar_of(Console(file=io.StringIO()))
    (task,) = bar.progress.tasks
    assert (task.total, task.completed, task.fields["loss"]) == (30, 5, "-")
    state.global_step, state.epoch = 7, 0.75
    bar.on_step_end(ARGS, state, None)
    bar.on_log(ARGS, state, None, logs={"loss": 0.123456})
    bar.on_log(ARGS, state, None, logs={"eval_loss": 9.0})
    assert (task.completed, task.fields["epoch"], task.fields["loss"]) == (7, "0.8", "0.1235")
    bar.close()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("main", [False, True])
def test_the_bar_is_shown_on_a_terminal_by_one_process_and_is_taken_away(terminal, main):
    console = Console(file=io.StringIO(), force_terminal=terminal)
    bar, _ = bar_of(console, is_world_process_zero=main)
    assert bar.progress.live.is_started == (terminal and main)
    for _ in range(2):
        bar.close()
        assert not bar.progress.live.is_started


def test_an_evaluation_is_a_line_with_the_mean_of_the_losses_since_the_last_one():
    console = Console(file=io.StringIO(), width=200)
    bar, state = bar_of(console)
    for losses, epoch, mean in (([1.0, 2.0], 1.0, "1.5000"), ([], 2.0, "-"), ([0.5], 2.5, "0.5000")):
        for loss in losses:
            bar.on_log(ARGS, state, None, logs={"loss": loss})
        state.epoch = epoch
        bar.on_evaluate(ARGS, state, None, metrics={"eval_loss": 0.25, "eval_accuracy": 0.5})
        assert console.file.getvalue().splitlines()[-1] == f"epoch {epoch:g}/3  loss {mean}  eval loss 0.2500  accuracy 0.5000"
    state.is_world_process_zero = False
    bar.on_evaluate(ARGS, state, None, metrics={"eval_loss": 0.25, "eval_accuracy": 0.5})
    assert len(console.file.getvalue().splitlines()) == 3


def test_a_log_for_tensorboard_is_closed_whether_or_not_it_was_begun(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.close()
    closed = []
    log.tb_writer = SimpleNamespace(close=lambda: closed.append(True))
    log.close()
    assert closed == [True]
    assert log.logging_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("strategy", "step", "epoch", "saves"),
    [
        ("epoch", 4, 0.5, True),
        ("epoch", 5, 0.6, False),
        ("epoch", 8, 1.0, False),  # saved once the epoch is evaluated
        ("steps", 8, 1.0, True),
    ],
)
def test_a_checkpoint_every_few_steps_but_none_twice(strategy, step, epoch, saves):
    control = TrainerControl()
    SaveEvery(4).on_step_end(SimpleNamespace(save_strategy=strategy), SimpleNamespace(global_step=step, epoch=epoch), control)
    assert control.should_save is saves
