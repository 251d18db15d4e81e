"""A log file says how far training is."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from loralib.train.log_lines import EVERY, LogLines

ARGS: Any = SimpleNamespace(train_batch_size=4, gradient_accumulation_steps=2, world_size=3)


def shown(times: list[float], first: int = 0, terminal: bool = False, **values: Any) -> list[str]:
    """The lines after logs at these times, ten steps each."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=20)
    clock = iter([0.0, *times])
    lines = LogLines(console, tokens=5.0, clock=lambda: next(clock))
    state: Any = SimpleNamespace(**{"global_step": first, "max_steps": 2000, "is_world_process_zero": True} | values)
    control: Any = None
    lines.on_train_begin(ARGS, state, control)
    for _ in times:
        state.global_step += 10
        lines.on_log(ARGS, state, control, logs={"loss": 0.5, "learning_rate": 1e-3})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_line_says_how_fast_it_is_and_how_long_it_takes() -> None:
    speed = round(10 * 4 * 2 * 3 * 5 / EVERY)
    left = "1:39:30"  # 199 times ten steps
    assert shown([EVERY]) == [f"step 10/2,000  loss 0.5000  learning rate 1.00e-03  {speed} tokens/s  {left} left"]


def test_lines_keep_their_distance() -> None:
    found = shown([EVERY / 2, EVERY, 1.2 * EVERY, 1.9 * EVERY, 2 * EVERY, 2.5 * EVERY])
    assert [line.partition("/")[0] for line in found] == ["step 20", "step 50"]


def test_a_resumed_run_measures_what_it_did_itself() -> None:
    (line,) = shown([EVERY], first=1000)
    assert line.startswith("step 1,010/2,000")
    assert line.endswith("0:49:30 left")


@pytest.mark.parametrize("values", [{"terminal": True}, {"is_world_process_zero": False}])
def test_a_terminal_has_its_bar_and_one_process_speaks(values: dict[str, Any]) -> None:
    assert shown([EVERY], **values) == []


def test_an_evaluation_is_no_step_of_training() -> None:
    console = Console(file=io.StringIO())
    lines = LogLines(console, 1.0, clock=iter([0.0, EVERY]).__next__)
    state: Any = SimpleNamespace(global_step=0, max_steps=9, is_world_process_zero=True)
    control: Any = None
    lines.on_train_begin(ARGS, state, control)
    lines.on_log(ARGS, state, control, logs={"eval_loss": 0.5})
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""
