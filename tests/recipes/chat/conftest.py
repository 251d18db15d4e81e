"""A tiny Llama that chats by ChatML, on disk, and a tiny set of conversations that it can learn."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import chats
from loralib.recipes.chat import templates
from loralib.recipes.options import TrainOptions
from loralib.recipes.run import train

CITIES = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Peru": "Lima"}


def talk(land: str) -> dict[str, Any]:
    """A question with its answer, which stands in two lines."""
    question = {"role": "user", "content": f"What is the capital of {land}?"}
    return {"messages": [question, {"role": "assistant", "content": f"It is\n{CITIES[land]}."}]}


def options(chatter: Path, data: Path, **values: Any) -> TrainOptions:
    """A run on the conversations."""
    common: dict[str, Any] = {"model": str(chatter), "problem": "chat", "data": str(data), "eval_data": str(data)}
    return TrainOptions.of(common | {"batch_size": 4, "num_train_epochs": 2, "max_length": 64, "learning_rate": 1e-2} | values)


def run(folder: Path, chosen: TrainOptions, **how: Any) -> dict[str, Any]:
    return train(chosen, folder, console=Console(file=io.StringIO()), **how)


def tiny(kind: str = "llama", **sizes: Any) -> Any:
    """A random causal language model of two blocks for the tokenizer of `chats`."""
    import transformers

    tokenizer = chats.tokenizer()
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
    }
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **(shape | sizes))
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="session")
def chatter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat-llama")
    model = tiny(initializer_range=0.2)
    model.save_pretrained(folder)
    chats.tokenizer(templates.NAMED["chatml"], eos_token="<|im_end|>", pad_token="<|endoftext|>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def capitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 24 conversations about four capitals."""
    path = tmp_path_factory.mktemp("capitals") / "capitals.jsonl"
    path.write_text("".join(json.dumps(talk(land)) + "\n" for land in [*CITIES] * 6))
    return path
