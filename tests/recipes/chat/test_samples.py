"""Which prompts are shown, and that showing them changes nothing."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console

import chats
from loralib.recipes.chat.form import ChatForm
from loralib.recipes.chat.samples import Samples, questions
from loralib.recipes.chat.templates import NAMED
from recipes.chat.conftest import talk, tiny

ARGS: Any = SimpleNamespace(fsdp=[], deepspeed=None)


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step, epoch=step / 10, is_world_process_zero=True)


def test_questions() -> None:
    first = talk("France") | {"learned": 0, "tools": None}
    answered = {"messages": [*first["messages"], *talk("Peru")["messages"]], "learned": 3, "tools": None}
    rows = [{"text": "x"}, first | {"tools": [{}]}, first, answered]
    found = questions(rows, 9)
    assert found == [(first["messages"][:1], "It is\nParis."), (answered["messages"][:3], "It is\nLima.")]
    assert questions(rows, 1) == found[:1]
    assert questions(rows, 0) == []


def test_a_look_changes_nothing(tmp_path: Path) -> None:
    model, tokenizer = tiny(), chats.tokenizer(NAMED["chatml"], eos_token="<|im_end|>")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    asked = [(talk("France")["messages"][:1], "It is\nParis.")]
    looks = Samples(model, ChatForm(tokenizer), asked, Console(file=io.StringIO()), tmp_path / "samples.jsonl")
    model.train()
    random = torch.get_rng_state()
    for step in (0, 5, 10):
        looks.on_evaluate(ARGS, state(step), SimpleNamespace())  # type: ignore[arg-type]
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 5, 10]
    again = Samples(model, ChatForm(tokenizer), asked, Console(file=io.StringIO()), tmp_path / "samples.jsonl")
    again.on_train_begin(ARGS, state(5), SimpleNamespace())  # type: ignore[arg-type]
    assert [row["step"] for row in again.kept] == [0, 5]


def test_answers_with_any_line_break_are_taken_up_again(tmp_path: Path) -> None:
    row = {"step": 2, "answers": [{"answer": "a\u2028b"}]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    form = ChatForm(chats.tokenizer(NAMED["chatml"], eos_token="<|im_end|>"))
    looks = Samples(tiny(), form, [], Console(file=io.StringIO()), tmp_path / "samples.jsonl")
    looks.on_train_begin(ARGS, state(5), SimpleNamespace())  # type: ignore[arg-type]
    assert looks.kept == [row]
