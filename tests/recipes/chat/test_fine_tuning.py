"""Runs on conversations: what they learn, write and refuse, and that what they write is what others read."""

import io
import json
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
from loralib.errors import ConfigError, DataError
from loralib.recipes import run_folder
from loralib.recipes.nlg import generator
from loralib.recipes.options import TrainOptions
from loralib.recipes.presets.nlg import CHATTING
from loralib.recipes.run import Interrupted, train
from recipes.chat.conftest import CITIES, options, run

QUESTION = "What is the capital of Peru?"


@pytest.fixture(scope="module")
def learned(chatter: Path, capitals: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that knows the capitals."""
    folder = tmp_path_factory.mktemp("runs") / "capitals"
    return folder, run(folder, options(chatter, capitals, num_train_epochs=12, save_merged=True))


def test_it_answers_in_as_many_lines_as_it_learned(learned: tuple[Path, dict[str, Any]]) -> None:
    folder, results = learned
    found = generator.open_run(folder)
    questions = [f"What is the capital of {land}?" for land in CITIES]
    assert found.generate(questions, CHATTING) == [f"It is\n{city}." for city in CITIES.values()]
    assert results["metrics"]["perplexity"] < 3


def test_the_tokenizer_with_its_template_and_ends_is_saved(learned: tuple[Path, dict[str, Any]], chatter: Path) -> None:
    folder, _ = learned
    base = AutoTokenizer.from_pretrained(chatter)
    for part in (run_folder.ADAPTER, run_folder.MERGED):
        assert AutoTokenizer.from_pretrained(folder / part).chat_template == base.chat_template
    merged = AutoModelForCausalLM.from_pretrained(folder / run_folder.MERGED)
    tokenizer = AutoTokenizer.from_pretrained(folder / run_folder.MERGED)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in merged.generation_config.eos_token_id
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = merged.generate(**ids, max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :]) == "It is\nLima.<|im_end|>"


def test_peft_computes_the_same(learned: tuple[Path, dict[str, Any]], chatter: Path) -> None:
    from peft import PeftModel

    ids = torch.tensor([[5, 30, 44, 9]])
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chatter), learned[0] / run_folder.ADAPTER)
    ours = AutoModelForCausalLM.from_pretrained(chatter)
    lora.attach(ours, lora.load(learned[0] / run_folder.ADAPTER))
    torch.testing.assert_close(ours.eval()(ids).logits, theirs.eval()(ids).logits)


def test_defaults_of_the_kind_and_what_the_model_decides(learned: tuple[Path, dict[str, Any]]) -> None:
    usual = TrainOptions.of({"model": "m", "data": "d.jsonl", "problem": "chat"})
    assert (usual.lora.r, usual.lora.lora_alpha, usual.lora.target_modules) == (16, 32.0, "all-linear")
    assert (usual.learning_rate, usual.group_by_length, usual.length) == ("auto", True, 1024)
    stored = yaml.safe_load((learned[0] / run_folder.CONFIG).read_text())
    assert stored["chat_template"] == "tokenizer"
    packed = TrainOptions.of({"model": "m", "data": "d.jsonl", "problem": "chat", "packing": True, "layers": "query"})
    assert not packed.group_by_length
    assert not packed.lora.target_modules
    full = TrainOptions.of({"model": "m", "data": "d.jsonl", "problem": "chat", "method": "full"})
    assert full.lora == TrainOptions(model="m", data="d.tsv").lora


def test_the_rate_by_the_model(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    results = run(tmp_path / "run", options(chatter, capitals, learning_rate="auto", num_train_epochs=1))
    assert results["learning_rate"] == pytest.approx(5e-4 * (2000 / 32) ** 0.781, rel=1e-3)
    assert yaml.safe_load((tmp_path / "run" / run_folder.CONFIG).read_text())["learning_rate"] == results["learning_rate"]


@pytest.mark.parametrize("method", ["last-layers", "full"])
def test_other_methods(method: str, chatter: Path, capitals: Path, tmp_path: Path) -> None:
    results = run(tmp_path / "run", options(chatter, capitals, method=method))
    assert results["steps"] == 12
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / run_folder.MODEL).chat_template


EXPECTED: list[dict[str, Any]] = [
    {"dtype": "bf16"},
    {"gradient_checkpointing": True},
    {"eval_steps": 2},
    {"optim": "adafactor"},
    {"lr_scheduler_type": "cosine"},
    {"packing": True},
]


@pytest.mark.parametrize("changes", EXPECTED)
def test_options_that_people_expect(changes: dict[str, Any], chatter: Path, capitals: Path, tmp_path: Path) -> None:
    results = run(tmp_path / "run", options(chatter, capitals, num_train_epochs=1, **changes))
    assert results["steps"] == (3 if "packing" in changes else 6)
    evaluations = [row["step"] for row in results["history"] if "eval_loss" in row]
    assert evaluations == [0, *([2, 4, 6] if "eval_steps" in changes else [results["steps"]])]


class Press(TrainerCallback):
    """Ctrl-C before the eighth step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Press, once."""
        if state.global_step == 7:
            signal.raise_signal(signal.SIGINT)


class PressBefore(TrainerCallback):
    """Ctrl-C in the evaluation before the first step."""

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Press, once."""
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_before_the_first_step_ends_at_once_and_leaves_nothing(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as interrupted:
        run(tmp_path / "run", options(chatter, capitals), callbacks=[PressBefore()])
    assert interrupted.value.checkpoint is None
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("chosen", ["plain", pytest.param("chatml", marks=pytest.mark.slow)])
def test_a_template_by_name(chosen: str, chatter: Path, capitals: Path, tmp_path: Path) -> None:
    """It is kept with the run, through an interruption, and used when the run is."""
    with pytest.raises(Interrupted):
        run(tmp_path / "run", options(chatter, capitals, chat_template=chosen, num_train_epochs=12), callbacks=[Press()])
    run(tmp_path / "run", run_folder.read_options(tmp_path / "run")[0], resume=True)
    found = generator.open_run(tmp_path / "run")
    assert found.generate([QUESTION], CHATTING) == ["It is\nLima."]
    assert ("User: " in found.tokenizer.chat_template) == (chosen == "plain")


def without_template(chatter: Path, folder: Path) -> Path:
    """The model with a tokenizer that has no chat template."""
    AutoModelForCausalLM.from_pretrained(chatter).save_pretrained(folder)
    chats.tokenizer().save_pretrained(folder)
    return folder


def test_plain_text_needs_no_template(chatter: Path, tmp_path: Path) -> None:
    """Not to begin with, and not to go on."""
    data, base = tmp_path / "text.jsonl", without_template(chatter, tmp_path / "base")
    data.write_text("".join(json.dumps({"text": f"It is {city}."}) + "\n" for city in [*CITIES.values()] * 4))
    with pytest.raises(Interrupted):
        run(tmp_path / "run", options(base, data, layout="text", num_train_epochs=3), callbacks=[Press()])
    results = run(tmp_path / "run", run_folder.read_options(tmp_path / "run")[0], resume=True)
    assert (results["train_rows"], results["steps"]) == (16, 12)
    assert generator.open_run(tmp_path / "run").form.prompt_ids("It") == chats.tokenizer().encode("It")


def test_long_rows_are_counted_before_training(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    import io

    from rich.console import Console

    from loralib.recipes.run import train

    said = io.StringIO()
    train(
        options(chatter, capitals, max_length=30, num_train_epochs=1), tmp_path / "run", console=Console(file=said, width=200)
    )
    assert "rows cut at 30 tokens" in said.getvalue()


def test_what_cannot_serve_is_said_and_nothing_is_written(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    for text, sentence in (
        ('{"messages": [}\n', "line 1 is not JSON"),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "line 1 has no message of the assistant"),
        ('{"question": "x", "answer": "y"}\n', "has the columns 'question', 'answer'; conversations come in one of"),
    ):
        bad.write_text(text)
        with pytest.raises(DataError, match=sentence):
            run(tmp_path / "run", options(chatter, bad, eval_data=None))
    with pytest.raises(DataError, match=r"no row has an answer within 9 tokens; give a larger --max-length"):
        run(tmp_path / "run", options(chatter, capitals, max_length=9))
    with pytest.raises(ConfigError, match="must be tokenizer, chatml, plain, or the path"):
        run(tmp_path / "run", options(chatter, capitals, chat_template="alpaca"))
    with pytest.raises(ConfigError, match="nosuch is not a valid Optim"):
        run(tmp_path / "run", options(chatter, capitals, optim="nosuch"))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_a_template(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no chat template; name one: --chat-template plain, chatml"):
        run(tmp_path / "run", options(without_template(chatter, tmp_path / "base"), capitals))
    assert not (tmp_path / "run").exists()


def test_resumed_bit_for_bit(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    chosen = options(chatter, capitals, lora_dropout=0.1, num_train_epochs=3)
    run(tmp_path / "whole", chosen)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", chosen, callbacks=[Press()])
    run(tmp_path / "run", run_folder.read_options(tmp_path / "run")[0], resume=True)
    a, b = (lora.load(tmp_path / name / run_folder.ADAPTER) for name in ("whole", "run"))
    assert a == b


def test_a_curve_and_answers_from_before_the_first_step(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    import io

    from rich.console import Console

    from loralib.recipes.run import train

    said = io.StringIO()
    chosen = options(chatter, capitals, num_train_epochs=12, eval_steps=24, samples=2)
    results = train(chosen, tmp_path / "run", console=Console(file=said, width=200))
    assert [row["step"] for row in results["history"] if "eval_loss" in row] == [0, 24, 48, 72]
    assert results["kept_epoch"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / run_folder.SAMPLES).read_text().splitlines()]
    assert [row["step"] for row in lines] == [0, 24, 48, 72]
    last = lines[-1]["answers"]
    assert [row["answer"] for row in last] == [row["reference"] for row in last] == ["It is\nParis.", "It is\nMadrid."]
    assert lines[0]["answers"][0]["answer"] != last[0]["answer"]
    assert "prompt    What is the capital of France?" in said.getvalue()
    assert "now       It is Paris." in said.getvalue()
    assert run_folder.before_and_after(tmp_path / "run")[2] == "after: It is\nParis."


def test_answers_of_a_resumed_run(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    """They go on where the checkpoint was, and nothing is evaluated a second time."""
    with pytest.raises(Interrupted):
        run(tmp_path / "run", options(chatter, capitals, num_train_epochs=3, samples=1), callbacks=[Press()])
    results = run(tmp_path / "run", run_folder.read_options(tmp_path / "run")[0], resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / run_folder.SAMPLES).read_text().splitlines()]
    assert [row["step"] for row in lines] == [0, 6, 12, 18]
    assert [row["step"] for row in results["history"] if "eval_loss" in row] == [0, 6, 12, 18]


def test_no_samples(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", options(chatter, capitals, num_train_epochs=1, samples=0))
    assert not (tmp_path / "run" / run_folder.SAMPLES).exists()
    assert run_folder.before_and_after(tmp_path / "run") == []


def test_what_is_far_from_what_works_is_said(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    import io

    from rich.console import Console

    from loralib.recipes.run import train

    said = io.StringIO()
    train(
        options(chatter, capitals, learning_rate=1.0, num_train_epochs=1),
        tmp_path / "run",
        console=Console(file=said, width=300),
    )
    assert "warning: learning_rate=1" in said.getvalue()


@pytest.mark.slow
def test_a_resumed_run_keeps_its_template(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    """The base has another template, or none."""
    chosen = options(chatter, capitals, chat_template="plain", num_train_epochs=2)
    run(tmp_path / "run", chosen)
    whole = (tmp_path / "run" / run_folder.METRICS).read_text()
    for part in (run_folder.METRICS, f"{run_folder.CHECKPOINTS}/checkpoint-12/trainer_state.json"):
        (tmp_path / "run" / part).unlink()
    kept = run_folder.read_options(tmp_path / "run")[0]
    assert (kept.chat_template, kept.layout) == ("plain", "messages")
    assert run(tmp_path / "run", kept, resume=True)["value"] == json.loads(whole)["value"]
    assert "User: " in generator.open_run(tmp_path / "run").tokenizer.chat_template


def test_what_the_data_are_is_said(chatter: Path, capitals: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    train(options(chatter, capitals, num_train_epochs=1), tmp_path / "run", console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "rows in the layout messages (--layout): the assistant's messages are learned, " in said
