"""A run of `loralib train` names the factors that the first backward pass did not reach."""

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

import loralib as lora
from loralib.train.callbacks import CheckTrained
from models import mlp


class OneIdle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


def said_of(model: nn.Module, main: bool = True, steps: int = 1, backward: bool = True) -> str:
    console = Console(file=io.StringIO(), width=500)
    callback = CheckTrained(console)
    for _ in range(steps):
        if backward:
            model(torch.randn(2, 4)).sum().backward()
        callback.on_pre_optimizer_step(None, SimpleNamespace(is_world_process_zero=main), None, model=model)
    return console.file.getvalue()


def with_lora(model: nn.Module) -> nn.Module:
    lora.inject(model, lora.LoRAConfig(r=2))
    lora.mark_only_lora_as_trainable(model)
    return model


@pytest.mark.parametrize("steps", [1, 3])
def test_what_the_first_backward_pass_did_not_reach_is_named_once(steps):
    said = said_of(with_lora(OneIdle()), steps=steps)
    assert said.count("warning: 2 LoRA factors do not train: idle.lora_A: it has no gradient") == 1
    assert "used" not in said


@pytest.mark.parametrize(
    "how", [{"model": mlp(4, 3)}, {"model": with_lora(mlp(4, 3))}, {"main": False}, {"backward": False}], ids=str
)
def test_nothing_is_said_otherwise(how):
    assert said_of(**{"model": with_lora(OneIdle())} | how) == ""
