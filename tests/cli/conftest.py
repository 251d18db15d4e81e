"""What tests of several commands share: their words in this process, and a small adapter."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import loralib as lora
from loralib.cli import main
from sample_adapters import tensor

WORDS = {  # of each command on files of adapters, in `place`
    "info": ["one"],
    "convert": ["one", "-o", "out.safetensors", "--format", "safetensors"],
    "combine": ["one", "two", "--weights", "0.5", "0.5", "--method", "ties", "--density", "0.5", "-o", "out"],
    "extract": ["tuned", "base", "--r", "2", "-o", "out"],
    "merge": ["base", "one", "-o", "out", "--check"],
}


def said(capsys, *words: object) -> str:
    """What a command prints that succeeds."""
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def complaint(capsys, *words: object, code: int = 2) -> str:
    """The one sentence of a command whose words are off, or that fails."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("loralib: ")
    return captured.err


def adapter(seed: int = 0, head: float | None = None, **metadata: str) -> lora.Adapter:
    """Two layers of rank 3, and a head where its value is given."""
    torch.manual_seed(seed)
    layers = {f"l{i}.proj": lora.LoRAUpdate(torch.randn(3, 6), torch.randn(4, 3), 6) for i in range(2)}
    tensors = {} if head is None else {"head.weight": torch.full((2,), head)}
    config = lora.LoRAConfig(modules_to_save=["head"] if tensors else [])
    return lora.Adapter(config, layers, tensors, metadata)


def of_rank_2(seed: int) -> lora.Adapter:
    """Two layers of rank 2, as large as the weights in `place`."""
    layers = {
        f"layers.{i}.proj": lora.LoRAUpdate(tensor((2, 6), torch.float32, seed + i), tensor((4, 2), torch.float32, seed + 9), 4)
        for i in range(2)
    }
    return lora.Adapter(lora.LoRAConfig(), layers)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two adapters and two models."""
    for name, seed in (("one", 0), ("two", 5)):
        lora.save(of_rank_2(seed), tmp_path / name)
    for name, seed in (("base", 0), ("tuned", 50)):
        (tmp_path / name).mkdir()
        weights = {f"layers.{i}.proj.weight": tensor((4, 6), torch.float32, seed + i) for i in range(2)}
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return tmp_path
