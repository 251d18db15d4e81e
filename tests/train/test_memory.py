"""What training keeps, counted from shapes: the same as the tensors that are there after two steps."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.train.memory import Memory, live, memory


class Tied(nn.Module):
    """A language model's ends: one weight, twice; and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.proj = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.zeros(8))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.proj(self.embed(ids) + self.offset))
        return logits


def full(model: nn.Module) -> nn.Module:
    return model


def with_lora(model: nn.Module) -> nn.Module:
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["proj"]))
    lora.mark_only_lora_as_trainable(model)
    return model


@pytest.mark.parametrize("prepare", [full, with_lora])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_what_is_counted_is_there_after_two_steps(
    prepare: Callable[[nn.Module], nn.Module], dtype: torch.dtype, name: str, kind: type[torch.optim.Optimizer]
) -> None:
    with torch.device("meta"):
        counted = memory(prepare(Tied().to(dtype)), name)
    model = prepare(Tied().to(dtype))
    optimizer = kind([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([[1, 2, 3]])).float().square().mean().backward()
        optimizer.step()
    assert live(model, optimizer) == counted
    assert counted.gradients == counted.trained * next(p.dtype for p in model.parameters() if p.requires_grad).itemsize


def test_tied_weights_count_once_and_buffers_are_weights() -> None:
    numbers = 11 * 8 + 8 * 8 + 8
    assert memory(Tied(), "sgd") == Memory(numbers, 4 * (numbers + 8), 4 * numbers, 0, 4 * (numbers + 8))


def test_lora_saves_its_factors_alone() -> None:
    found = memory(with_lora(Tied()))
    assert found.trained == 2 * (8 + 8)
    assert found.saved == found.gradients == 4 * found.trained


@pytest.mark.parametrize(("n", "kept"), [(4095, 8 * 4095), (4096, 2 * 4096 + 8 * 16), (4097, 2 * 4097 + 8 * 17)])
def test_8_bit_states_have_a_scale_for_each_block_and_small_tensors_none(n: int, kept: int) -> None:
    assert memory(nn.Linear(n, 1, bias=False), "adamw_8bit").optimizer == kept
