"""What a person sees while training runs, and what Ctrl-C does."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C finishes the step in hand, saves a checkpoint and ends training; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.requested = self.cut_short = False
        self._previous: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take over the signal."""
        self._previous = signal.signal(signal.SIGINT, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop, when asked to. An epoch that ends with this step ends as ever, with its evaluation and checkpoint."""
        if self.requested:
            control.should_training_stop = True
            self.cut_short = not (float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps)
            control.should_save |= self.cut_short

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An epoch that was cut short is neither evaluated nor saved as if it were whole."""
        if self.cut_short:
            control.should_evaluate = control.should_save = control.should_log = False

    def close(self) -> None:
        """Give the signal back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


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
        self.loss: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the bar."""
        self.task = self.progress.add_task("train", total=state.max_steps, completed=state.global_step, epoch="1", loss="-")
        if state.is_world_process_zero:
            self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        assert self.task is not None
        self.progress.update(self.task, completed=state.global_step, epoch=f"{state.epoch or 0:.1f}")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the training loss."""
        logs: dict[str, float] = kwargs.get("logs") or {}
        if "loss" in logs and self.task is not None:
            self.loss = logs["loss"]
            self.progress.update(self.task, loss=f"{self.loss:.4f}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print one line: training loss, evaluation loss, metric."""
        metrics: dict[str, float] = kwargs["metrics"]
        if state.is_world_process_zero and self.progress.live.is_started:
            loss = "-" if self.loss is None else f"{self.loss:.4f}"
            self.console.print(
                f"epoch {state.epoch or 0:g}/{args.num_train_epochs:g}  loss {loss}  "
                f"eval loss {metrics['eval_loss']:.4f}  {self.metric} {metrics[f'eval_{self.metric}']:.4f}",
                highlight=False,
            )

    def close(self) -> None:
        """Take the bar away."""
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
