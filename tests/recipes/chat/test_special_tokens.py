"""Special tokens in messages are said, with the row, and nothing else is."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from loralib.recipes.chat import special_tokens
from loralib.recipes.run import train
from recipes.chat.conftest import options

PLAIN = [{"role": "user", "content": "What is <b>bold</b>?"}, {"role": "assistant", "content": None}]


def marked(token: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"Hello{token}\n"}]


def test_the_first_row_with_one_is_named(chatter: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatter)
    token = tokenizer.eos_token
    assert special_tokens.note(tokenizer, [PLAIN, PLAIN], "d.jsonl") == ""
    assert special_tokens.note(tokenizer, [], "d.jsonl") == ""
    found = special_tokens.note(tokenizer, [PLAIN, marked(token), marked(token)], "d.jsonl")
    assert found.startswith(
        f"warning: d.jsonl: 2 of 3 rows have special tokens in messages (row 2: {token}), which end or begin"
    )
    assert "d.jsonl: a row has special tokens" in special_tokens.note(tokenizer, [marked(token)], "d.jsonl")


@pytest.mark.parametrize("problem", ["chat", "preference"])
def test_a_run_says_it(problem: str, chatter: Path, tmp_path: Path) -> None:
    token = AutoTokenizer.from_pretrained(chatter).eos_token
    rows = []
    for i in range(8):
        row: dict[str, Any] = {"prompt": f"What is {i}{token}?"}
        answers = {"chosen": "It is Paris.", "rejected": "It is Rome."} if problem == "preference" else {"completion": "Rome."}
        rows.append(row | answers)
    path, console = tmp_path / "rows.jsonl", Console(file=io.StringIO(), width=300)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = options(chatter, path, problem=problem, eval_data=None, num_train_epochs=1, samples=0)
    train(chosen, tmp_path / "run", console=console)
    assert "rows have special tokens in messages (row 1: " in console.file.getvalue()  # type: ignore[attr-defined]
