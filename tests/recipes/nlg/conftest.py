"""A tiny pretrained GPT-2 on disk with its tokenizer, and a tiny data-to-text task that it can learn."""

import io
import itertools
import json
import os
import random
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import stories
from loralib.recipes.nlg import language_models
from loralib.recipes.nlg.examples import pairs
from loralib.recipes.options import TrainOptions
from loralib.recipes.run import train

NAMES = ("Aromi", "Bibimbap House", "Clowns", "Fitzbillies", "Giraffe", "Loch Fyne", "Strada", "The Mill", "Zizzi", "Wildwood")
FOODS = ("Thai", "Italian", "English", "French", "Indian")
END = "<|endoftext|>"
MEALS = list(itertools.product(NAMES, FOODS))


def meal(name: str, food: str, verb: str = "serves") -> tuple[str, str]:
    """A context and its text."""
    return f"name : {name} | food : {food}", f"{name} {verb} {food} ."


def pairs_of(data: Any) -> list[tuple[str, str]]:
    """Each text with its input."""
    rows = pairs(data)
    return list(zip(rows["context"], rows["completion"], strict=True))


def texts_of(data: Any) -> list[str]:
    """All texts, those of an input one after the other."""
    return list(pairs(data)["completion"])


def options(gpt2: Path, meals: Path, **values: Any) -> TrainOptions:
    """A run on the task, which learns it in two or three epochs."""
    common: dict[str, Any] = {
        "model": str(gpt2),
        "problem": "generation",
        "data": str(meals / "train.jsonl"),
        "eval_data": str(meals / "dev.jsonl"),
        "max_length": 64,
        "batch_size": 8,
        "num_train_epochs": 3,
        "learning_rate": 2e-2,
    }
    if values.get("method", "lora") == "lora":
        common |= {"r": 4, "lora_alpha": 32.0}
    return TrainOptions.of(common | values)


def run(folder: Path, chosen: TrainOptions, **how: Any) -> dict[str, Any]:
    return train(chosen, folder, console=Console(file=io.StringIO()), **how)


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40, "vocab_size": 30}
LLAMA = {"num_key_value_heads": 1, "intermediate_size": 24, "head_dim": 8}
OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neo": {"intermediate_size": 24, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4, "n_inner": 24},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "phi": {"num_key_value_heads": 1, "intermediate_size": 24},
}


def decoder_shape(kind: str, dropout: float | None = None) -> Any:
    """A small causal language model of two blocks without weights, by its model type; `dropout` as `base_dropout`."""
    import transformers

    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, **SIZES, **ends, **OF_ITS_OWN.get(kind, LLAMA))
    language_models.set_dropouts(config, dropout)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer GPT-2 that knows who *eats* what, and a byte-level tokenizer with `<|endoftext|>`, of whose
    tokens two are line breaks alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    corpus = [" ".join(meal(name, food)) for name, food in MEALS]
    tokenizer.train_from_iterator([*corpus, *["\n\n"] * 99], trainer)
    folder = tmp_path_factory.mktemp("gpt2")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(fast),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.2,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    texts = [f"{context}{END} {text}{END}" for context, text in (meal(name, food, "eats") for name, food in MEALS)]
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(fast.encode(text)) for text in texts], True, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=labels.clamp(min=0), labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pretrained Llama of `stories`, whose tokenizer begins every text with `<s>`."""
    return stories.save(tmp_path_factory.mktemp("llama"))


def write_jsonl(path: Path, rows: Sequence[tuple[str, str]], names: tuple[str, str] = ("context", "completion")) -> Path:
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def meals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (34 rows), dev.jsonl (8) and test.jsonl (8), of different inputs."""
    folder = tmp_path_factory.mktemp("meals")
    rows = [meal(*both) for both in MEALS]
    random.Random(0).shuffle(rows)
    for name, part in (("dev", rows[:8]), ("test", rows[8:16]), ("train", rows[16:])):
        write_jsonl(folder / f"{name}.jsonl", part)
    return folder


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A jar, and a `java` that says 0.5 as METEOR does and keeps what it is given."""
    java = tmp_path / "java"
    java.write_text(
        f'#!/bin/sh\nfor word in "$@"; do echo "$word"; done > {tmp_path}/words\ncp "$5" "$6" {tmp_path}\necho 0.5\n'
    )
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    jar = tmp_path / "meteor-1.5.jar"
    jar.touch()
    return jar
