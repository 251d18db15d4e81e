"""Training by a Trainer, with progress, a log and clean interruption."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .callbacks import CheckTrained, ProgressBar, StopOnInterrupt, StopOnNonFinite, TensorBoardLog
from .check_moved import CheckMoved
from .log_lines import LogLines, mean_tokens


def fit(
    kind: type[Trainer], arguments: Mapping[str, Any], *, metric: str, log: Path, checkpoint: Path | None, console: Console
) -> Trainer:
    """Train by a Trainer of this kind with these arguments, and return it.

    metric: shown at every evaluation on the `console`. log: the folder of TensorBoard's log. checkpoint: where to go on from.
    Raises `KeyboardInterrupt` after Ctrl-C, once a checkpoint is written, and `RunError` when the loss is not a number or no
    LoRA factor moves.
    """
    stop, bar, board = StopOnInterrupt(), ProgressBar(console, metric), TensorBoardLog(log)
    lines = LogLines(console, mean_tokens(arguments["train_dataset"]))
    own = [stop, bar, lines, board, StopOnNonFinite(), CheckTrained(console), CheckMoved(console)]
    trainer = kind(**{**arguments, "callbacks": [*own, *arguments["callbacks"]]})
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        for callback in (bar, stop, board):
            callback.close()
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
    return trainer
