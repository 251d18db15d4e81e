"""`make chat`: all of its stages with a tiny model, and once the model that it is about."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from loralib.cli import guarded
from loralib.cli import main as loralib_main
from loralib.recipes import comparison
from loralib.recipes.apart import INTERRUPTED
from loralib.recipes.chat.form import ChatForm
from loralib.recipes.nlg import decoding, language_models
from loralib.recipes.presets.nlg import Decoding

sys.path.append(str(Path(__file__).parent.parent))  # `examples` is not a part of what is installed

from examples import chat

pytestmark = pytest.mark.slow

pytest_plugins = ["recipes.chat.conftest"]


@pytest.fixture
def trained(chatter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that the demo trains, with next to nothing of everything, in this process."""
    runs: list[str] = []

    def wait_for(words: Sequence[str]) -> int:
        runs.append(Path(words[2]).stem)
        return loralib_main(list(words))

    budget = chat.Budget(model=str(chatter), max_length=512, rows=16, requests=4, max_new_tokens=4)
    monkeypatch.setattr(comparison, "wait_for", wait_for)
    monkeypatch.setattr(chat, "Budget", lambda: budget)
    monkeypatch.setattr(chat, "RUNS", tmp_path / "chat")
    return runs


def test_every_stage_and_going_on(trained: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.main([]) == 0
    first = capsys.readouterr().out
    assert trained == ["lora", "full"]
    assert [line.split(":")[0] for line in first.splitlines() if "4 answers in" in line] == ["unadapted", "lora", "full"]
    assert f"loralib generate {chat.RUNS}/lora" in first
    for run in trained:
        assert json.loads((chat.RUNS / run / "metrics.json").read_text())["train_rows"] == 16

    (chat.RUNS / "full" / "generated" / "test.jsonl").unlink()
    (chat.RUNS / "full" / "generated" / "test.txt").unlink()
    assert chat.main(["--resume"]) == 0
    again = capsys.readouterr().out
    assert len(trained) == 2  # nothing was trained again
    assert [line.split(":")[0] for line in again.splitlines() if "4 answers in" in line] == ["full"]
    table = first[first.index("4 requests") :]
    assert again[again.index("4 requests") :] == table
    assert all(name in table for name in ("lora", "full", "unadapted", "new phrasing", "training"))


def test_answers_to_other_requests_are_not_kept(trained: list[str], tmp_path: Path) -> None:
    data = chat.read_requests(chat.DESK / "test.jsonl", 4)
    path = tmp_path / "x.jsonl"
    chat.generator.write(path, data, ["a", "b", "c", "d"])
    assert chat.read_answers(path, data) == ["a", "b", "c", "d"]
    assert chat.read_answers(path, data.select([1, 0, 2, 3])) is None
    assert chat.read_answers(tmp_path / "y.jsonl", data) is None


def test_an_interrupted_demo_says_how_to_go_on(
    trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "wait_for", lambda words: INTERRUPTED)
    assert guarded(lambda: chat.main([])) == INTERRUPTED
    assert "Go on with: python examples/chat.py --resume" in capsys.readouterr().err


def test_the_model_from_its_package_answers_and_is_saved_as_any_other(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = language_models.load_language_model("smollm2")
    how = Decoding(beams=1, no_repeat_ngram=0, max_new_tokens=12)
    (answer,) = decoding.decode(model.eval(), ChatForm(tokenizer), ["What is the capital of France?"], how)
    assert "Paris" in answer

    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    weights: dict[str, Any] = again.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template == tokenizer.chat_template

    assert model.name_or_path == model.config.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"  # as in what runs save
