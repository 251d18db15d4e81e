"""What a person sees while training runs, and what Ctrl-C does."""

import math
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from ..errors import RunError
from ..storage.json_text import finite
from ..surgery.check_trained import message, partly_untrained
from .rich_text import say

_FINISHING = b"\nFinishing this step; Ctrl-C again stops at once.\n"


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C or SIGTERM finishes the current step, or the evaluation after it, saves a checkpoint and ends training.

    The same again ends it at once, and so does the first one before the first step, when there is nothing to save.
    """

    def __init__(self) -> None:
        self.requested = self.cut_short = self.begun = False
        self._pressed: set[int] = set()
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take over the signals (Python lets only the main thread do so)."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """From now on there is something to lose."""
        self.begun = True

    def _request(self, number: int, frame: FrameType | None) -> None:
        first, again = not self._pressed, number in self._pressed
        self._pressed.add(number)  # `compare` passes Ctrl-C on as SIGTERM, which its own SIGINT may have come before
        if again or (first and not self.begun):
            raise KeyboardInterrupt
        if first:
            with suppress(OSError):  # standard error may be closed
                os.write(2, _FINISHING)  # unlike print, safe in a signal handler

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop, when asked to. An epoch that ends with this step is evaluated as ever before."""
        self.requested = bool(self._pressed)
        if args.world_size > 1:  # all processes stop at the same step
            asked = torch.tensor(int(self.requested), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.requested = bool(asked)
        if self.requested:
            control.should_training_stop = True
            self.cut_short = not (float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps)
            control.should_save |= self.cut_short

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An epoch that was cut short is neither evaluated nor saved as if it were whole."""
        if self.cut_short:
            control.should_evaluate = control.should_save = control.should_log = False
        elif self.requested:
            control.should_save = True

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class SaveEvery(TrainerCallback):
    """A checkpoint every `steps` steps, to go on from after a crash; Trainer's own are of the steps that it evaluates.

    One that Trainer saves at the end of the epoch anyway is left to it: the same step is not saved twice.
    """

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for one."""
        comes_anyway = args.save_strategy == "epoch" and float(state.epoch or 0).is_integer()
        control.should_save |= state.global_step % self.steps == 0 and not comes_anyway


class StopOnNonFinite(TrainerCallback):
    """A loss that is NaN or infinite ends training with a `RunError` instead of a result.

    The gradient norm of a step that float16's loss scaling skips is not finite either; it ends nothing, and is kept as None.
    """

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the training and evaluation losses, and keep the log as JSON can hold it."""
        logs: dict[str, float] = kwargs.get("logs") or {}
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise RunError(
                    f"the {name.replace('_', ' ')} is {logs[name]} at step {state.global_step}; lower the learning rate "
                    f"(it is {args.learning_rate:g}) and train again."
                )
        if state.log_history:
            state.log_history[-1] = finite(state.log_history[-1])


class CheckTrained(TrainerCallback):
    """After the first backward pass, the factors that it did not reach are named on the `console`."""

    def __init__(self, console: Console):
        self.console, self.done = console, False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the gradients, once."""
        if self.done:
            return
        self.done = True
        if (found := partly_untrained(kwargs["model"])) and state.is_world_process_zero:
            say(self.console, f"warning: {message(found)}")


class ProgressBar(TrainerCallback):
    """A bar with the loss while training runs, and one line for each evaluation."""

    def __init__(self, console: Console, metric: str):
        self.metric = metric
        self.console = console
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None
        self.losses: list[float] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the bar."""
        self.task = self.progress.add_task("train", total=state.max_steps, completed=state.global_step, epoch="-", loss="-")
        if state.is_world_process_zero and self.console.is_terminal:
            self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        assert self.task is not None
        self.progress.update(self.task, completed=state.global_step, epoch=f"{state.epoch or 0:.1f}")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the training loss."""
        logs: dict[str, float] = kwargs.get("logs") or {}
        if "loss" in logs and self.task is not None:
            self.losses.append(logs["loss"])
            self.progress.update(self.task, loss=f"{logs['loss']:.4f}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print one line: the mean training loss since the last one, the evaluation loss and the metric."""
        metrics: dict[str, float] = kwargs["metrics"]
        if state.is_world_process_zero:
            loss = f"{sum(self.losses) / len(self.losses):.4f}" if self.losses else "-"
            self.losses = []
            say(
                self.console,
                f"epoch {round(state.epoch or 0, 2):g}/{args.num_train_epochs:g}  loss {loss}  "
                f"eval loss {metrics['eval_loss']:.4f}  {self.metric} {metrics[f'eval_{self.metric}']:.4f}",
            )

    def close(self) -> None:
        """Take the bar away."""
        if self.progress.live.is_started:
            self.progress.stop()


class TensorBoardLog(TensorBoardCallback):
    """Losses, metrics and learning rate for TensorBoard, in `folder`."""

    def __init__(self, folder: Path):
        super().__init__()  # type: ignore[no-untyped-call]
        self.logging_dir = str(folder)

    def close(self) -> None:
        """Finish the log."""
        if self.tb_writer is not None:
            self.tb_writer.close()
