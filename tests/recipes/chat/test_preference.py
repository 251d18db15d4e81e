"""Runs on preference pairs: what they learn, write and refuse, and that what they write is what others read."""

import io
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import chats
import loralib as lora
from loralib.errors import ConfigError, DataError, RunError
from loralib.recipes import plan, run_folder
from loralib.recipes.options import TrainOptions
from loralib.recipes.run import Interrupted, train
from recipes.chat.conftest import CITIES, options, run


def pair(land: str) -> dict[str, str]:
    """A question with a right answer, and one that names the wrong city."""
    wrong = next(city for other, city in CITIES.items() if other != land)
    return {"prompt": f"What is the capital of {land}?", "chosen": f"It is\n{CITIES[land]}.", "rejected": f"It is\n{wrong}."}


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 24 pairs about four capitals."""
    path = tmp_path_factory.mktemp("choices") / "choices.jsonl"
    path.write_text("".join(json.dumps(pair(land)) + "\n" for land in [*CITIES] * 6))
    return path


def chosen(chatter: Path, data: Path, **values: Any) -> TrainOptions:
    """A run on the pairs."""
    return options(chatter, data, **{"problem": "preference", "learning_rate": 3e-3, "samples": 0} | values)


@pytest.fixture(scope="module")
def learned(chatter: Path, choices: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that prefers the right cities."""
    folder = tmp_path_factory.mktemp("runs") / "choices"
    one = chosen(chatter, choices, num_train_epochs=3, save_merged=True, test_data=str(choices), samples=1)
    return folder, run(folder, one)


def losses(results: dict[str, Any]) -> list[float]:
    """Those of training."""
    return [row["loss"] for row in results["history"] if "loss" in row]


def test_it_prefers_what_was_chosen(learned: tuple[Path, dict[str, Any]], chatter: Path) -> None:
    folder, results = learned
    assert results["metric"] == "reward_accuracy"
    assert results["value"] == results["metrics"]["reward_accuracy"] == 1.0
    assert results["metrics"]["reward_margin"] > 0.5
    assert results["metrics"]["loss"] < 0.5
    before, *_ = [row for row in results["history"] if "eval_loss" in row]
    assert (before["step"], before["eval_loss"]) == (0, pytest.approx(math.log(2), abs=1e-6))
    assert losses(results)[0] == pytest.approx(math.log(2), abs=1e-6)
    shown = [json.loads(line) for line in (folder / run_folder.SAMPLES).read_text().splitlines()]
    assert [row["answers"][0]["reference"] for row in shown] == ["It is\nParis."] * 4
    assert set(results["test"]) == {"reward_accuracy", "reward_margin"}
    assert results["test"]["reward_margin"] == pytest.approx(results["metrics"]["reward_margin"])
    assert not list((folder / run_folder.CHECKPOINTS).rglob("README.md"))


def test_peft_and_the_merged_model_compute_the_same(learned: tuple[Path, dict[str, Any]], chatter: Path) -> None:
    from peft import PeftModel

    ids, folder = torch.tensor([[5, 30, 44, 9]]), learned[0]
    ours, base = AutoModelForCausalLM.from_pretrained(chatter), AutoModelForCausalLM.from_pretrained(chatter)
    bare = base(ids).logits
    lora.attach(ours, lora.load(folder / run_folder.ADAPTER))
    theirs = PeftModel.from_pretrained(base, folder / run_folder.ADAPTER)
    torch.testing.assert_close(ours.eval()(ids).logits, theirs.eval()(ids).logits)
    merged = AutoModelForCausalLM.from_pretrained(folder / run_folder.MERGED)
    torch.testing.assert_close(merged(ids).logits, ours(ids).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged(ids).logits, bare, atol=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(folder / run_folder.MERGED)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(chatter).chat_template
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in merged.generation_config.eos_token_id


def test_defaults_of_the_kind(learned: tuple[Path, dict[str, Any]]) -> None:
    usual = TrainOptions.of({"model": "m", "data": "d.jsonl", "problem": "preference"})
    assert (usual.lora.r, usual.lora.lora_alpha, usual.lora.target_modules) == (16, 32.0, "all-linear")
    assert (usual.peak_learning_rate, usual.beta, usual.dpo_loss, usual.num_train_epochs) == (5e-6, 0.1, "sigmoid", 1)
    assert yaml.safe_load((learned[0] / run_folder.CONFIG).read_text())["chat_template"] == "tokenizer"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"dtype": "bf16", "gradient_checkpointing": True, "dpo_loss": "ipo"}, marks=pytest.mark.slow)]
)
def test_nothing_reaches_the_user_but_our_lines(
    changes: dict[str, Any], chatter: Path, choices: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    results = run(tmp_path / "run", chosen(chatter, choices, num_train_epochs=1, **changes))
    assert results["steps"] == 6
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_model_with_dropouts_starts_at_its_reference(chatter: Path, choices: Path, tmp_path: Path) -> None:
    """Dropouts of both kinds, modules and numbers, are off: the first loss is that of equal models."""
    model = AutoModelForCausalLM.from_pretrained(chatter, attention_dropout=0.5)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(chatter).save_pretrained(tmp_path / "base")
    results = run(tmp_path / "run", chosen(tmp_path / "base", choices, num_train_epochs=1))
    assert losses(results)[0] == pytest.approx(math.log(2), abs=1e-6)


class Press(TrainerCallback):
    """Presses Ctrl-C in the fifth step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            signal.raise_signal(signal.SIGINT)


def values(results: dict[str, Any]) -> list[dict[str, float]]:
    """What was logged, but for what the clock says."""
    return [
        {key: value for key, value in row.items() if "second" not in key and "time" not in key} for row in results["history"]
    ]


@pytest.mark.parametrize("starts_trained", [pytest.param(False, marks=pytest.mark.slow), True])
def test_resumed_bit_for_bit(
    starts_trained: bool, learned: tuple[Path, dict[str, Any]], chatter: Path, choices: Path, tmp_path: Path
) -> None:
    """Also where the reference has factors that are no longer those of the checkpoint."""
    start = {"init_adapter": str(learned[0])} if starts_trained else {}
    one = chosen(chatter, choices, batch_size=8, **start)
    whole = run(tmp_path / "whole", one)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", one, callbacks=[Press()])
    resumed = run(tmp_path / "run", run_folder.read_options(tmp_path / "run")[0], resume=True)
    assert whole["steps"] == 6
    assert losses(whole)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert values(whole) == values(resumed)
    a, b = (lora.load(tmp_path / name / run_folder.ADAPTER) for name in ("whole", "run"))
    assert a == b


def test_long_rows_are_counted_before_training(chatter: Path, choices: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    rows = [pair("Peru"), pair("Peru") | {"rejected": "It is\nLima. Or is it Rome? Or Paris? Or Madrid? Nobody can know."}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = chosen(chatter, tmp_path / "d.jsonl", max_length=55, num_train_epochs=1)
    train(one, tmp_path / "run", console=Console(file=said, width=200))
    assert "d.jsonl: 1 of 2 rows cut at 55 tokens (--max-length)" in said.getvalue()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "full"}, r"method='full': problem=preference has method=lora alone, whose base model is the reference"),
    ({"method": "last-layers"}, r"method='last-layers': problem=preference has method=lora alone"),
    ({"lora_dropout": 0.1}, r"lora_dropout=0.1 has no effect with problem=preference"),
    ({"learning_rate": "auto"}, r"learning_rate='auto': is a rule for texts that a language model learns; give a number"),
    ({"packing": True}, r"packing=True belongs to problem=chat"),
    ({"problem": "chat", "beta": 0.2}, r"beta=0.2 belongs to problem=preference"),
    ({"beta": 0.0}, r"beta=0.0: must be positive"),
    ({"dpo_loss": "kto"}, r"dpo_loss='kto': must be one of sigmoid, hinge, ipo"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_options_that_cannot_act(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        chosen(Path("m"), Path("d.jsonl"), **changes)


def test_what_cannot_serve_is_said_and_nothing_is_written(
    chatter: Path, choices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(pair("Peru")) + "\n" + json.dumps(pair("Peru") | {"rejected": "It is\nLima."}) + "\n")
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: chosen and rejected are the same answer"):
        run(tmp_path / "run", chosen(chatter, bad))
    with pytest.raises(DataError, match="no row has answers that differ within 9 tokens"):
        run(tmp_path / "run", chosen(chatter, choices, max_length=9))
    with pytest.raises(ConfigError, match=r"lm_head is the output embedding.*add --exclude-modules lm_head"):
        run(tmp_path / "run", chosen(chatter, choices, target_modules=["q_proj", "lm_head"]))
    chats.tokenizer().save_pretrained(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(chatter).save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match="has no chat template; name one: --chat-template plain, chatml"):
        run(tmp_path / "run", chosen(tmp_path / "base", choices))
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="problem=preference needs the package trl; run: pip install trl"):
        run(tmp_path / "run", chosen(chatter, choices))
    assert not (tmp_path / "run").exists()
