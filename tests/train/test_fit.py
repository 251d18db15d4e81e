"""Training by a Trainer of any kind: which callbacks it gets, where it goes on from, and how it ends."""

import io
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerCallback, TrainerControl
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from loralib.errors import RunError
from loralib.train.callbacks import CheckTrained, ProgressBar, StopOnInterrupt, StopOnNonFinite, TensorBoardLog
from loralib.train.check_moved import CheckMoved
from loralib.train.fit import fit
from loralib.train.log_lines import LogLines

OWN = [StopOnInterrupt, ProgressBar, LogLines, TensorBoardLog, StopOnNonFinite, CheckTrained, CheckMoved]


class Theirs(TrainerCallback):
    pass


class Fake:
    """A Trainer that trains nothing: it runs until `last` of ten steps, and presses Ctrl-C or fails on the way."""

    def __init__(self, last: int = 10, pressed: bool = False, error: Exception | None = None, **arguments: Any):
        self.arguments, self.last, self.pressed, self.error = arguments, last, pressed, error
        self.removed: list[type] = []
        self.state = SimpleNamespace(global_step=0, max_steps=10, epoch=0.5, is_world_process_zero=True)

    def remove_callback(self, kind: type) -> None:
        self.removed.append(kind)

    def train(self, resume_from_checkpoint: str | None) -> None:
        self.resumed, self.handlers = resume_from_checkpoint, signal.getsignal(signal.SIGINT)
        args, stop, bar = SimpleNamespace(world_size=1), *self.arguments["callbacks"][:2]
        for callback in (stop, bar):
            callback.on_train_begin(args, self.state, None)
        stop.on_step_begin(args, self.state, None)
        if self.pressed:
            signal.raise_signal(signal.SIGTERM)
        self.state.global_step = self.last
        stop.on_step_end(args, self.state, TrainerControl())
        if self.error:
            raise self.error


def run(folder: Path, checkpoint: Path | None = None, **values: Any) -> Any:
    arguments = {"train_dataset": [{"input_ids": [1, 2, 3]}], "callbacks": [Theirs()], **values}
    console = Console(file=io.StringIO(), force_terminal=True)
    return fit(Fake, arguments, metric="accuracy", log=folder / "logs", checkpoint=checkpoint, console=console)


def test_our_callbacks_come_before_the_callers_and_replace_transformers_own(tmp_path):
    trainer = run(tmp_path)
    assert [type(callback) for callback in trainer.arguments["callbacks"]] == [*OWN, Theirs]
    assert set(trainer.removed) == {PrinterCallback, ProgressCallback}
    assert trainer.arguments["callbacks"][3].logging_dir == str(tmp_path / "logs")


@pytest.mark.parametrize("checkpoint", [None, Path("checkpoint-4")])
def test_training_begins_or_goes_on(checkpoint, tmp_path):
    assert run(tmp_path, checkpoint).resumed == (None if checkpoint is None else "checkpoint-4")


@pytest.mark.parametrize("error", [None, RunError("the loss is nan"), KeyboardInterrupt()])
def test_signals_and_terminal_are_given_back_however_training_ends(error, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    made: list[Any] = []

    class Kept(Fake):
        def __init__(self, **values: Any):
            super().__init__(error=error, **values)
            made.append(self)

    arguments = {"train_dataset": [{"input_ids": [1]}], "callbacks": []}
    how = {
        "metric": "accuracy",
        "log": tmp_path,
        "checkpoint": None,
        "console": Console(file=io.StringIO(), force_terminal=True),
    }
    if error is None:
        assert fit(Kept, arguments, **how) is made[0]
    else:
        with pytest.raises(type(error)):
            fit(Kept, arguments, **how)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not made[0].arguments["callbacks"][1].progress.live.is_started


def test_an_interruption_is_raised_unless_the_last_step_was_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, last=4, pressed=True)
    assert run(tmp_path, last=10, pressed=True).state.global_step == 10
    assert run(tmp_path, last=4).state.global_step == 4
