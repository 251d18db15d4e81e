"""What tests of several commands share: their words in this process, and a small adapter."""

import torch

import loralib as lora
from loralib.cli import main


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
