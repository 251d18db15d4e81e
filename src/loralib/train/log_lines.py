"""What a log file shows while training runs, where there is no terminal for a bar."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .rich_text import say

EVERY = 30.0  # seconds
_LOOKED_AT = 1000  # rows, to find how long they are


class LogLines(TrainerCallback):
    """A line with the step, the loss, the learning rate, the speed and the time left, at most every `EVERY` seconds.

    tokens: in a row, on average. clock: tells the seconds.
    """

    def __init__(self, console: Console, tokens: float, clock: Callable[[], float] = time.monotonic):
        self.console, self.tokens, self.clock = console, tokens, clock
        self.began = self.last = (0, 0.0)  # step and time

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock."""
        self.began = self.last = (state.global_step, self.clock())

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print the line, when it is time."""
        logs: dict[str, float] = kwargs.get("logs") or {}
        step, now = state.global_step, self.clock()
        shown = state.is_world_process_zero and not self.console.is_terminal
        if not shown or "loss" not in logs or now < self.last[1] + EVERY:
            return
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        speed = rows * self.tokens * (step - self.last[0]) / (now - self.last[1])
        left = (state.max_steps - step) * (now - self.began[1]) / (step - self.began[0])
        self.last = (step, now)
        say(
            self.console,
            f"step {step:,}/{state.max_steps:,}  loss {logs['loss']:.4f}  learning rate {logs['learning_rate']:.2e}  "
            f"{speed:,.0f} tokens/s  {timedelta(seconds=round(left))} left",
        )


def mean_tokens(rows: Sequence[Mapping[str, Any]]) -> float:
    """How many tokens a row has on average; of many rows, about: a thousand of them are looked at.

    >>> mean_tokens([{"input_ids": [5, 6]}, {"input_ids": [5, 6, 7, 8]}])
    3.0
    """
    lengths = [len(rows[i]["input_ids"]) for i in range(0, len(rows), 1 + len(rows) // _LOOKED_AT)]
    return sum(lengths) / max(1, len(lengths))
