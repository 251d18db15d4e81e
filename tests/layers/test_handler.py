"""What a LoRA class says of plain layers: a fresh update that fits, and what does not."""

import math

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.layers import handler_of

PLAIN = {
    "linear": lambda: nn.Linear(6, 5),
    "convolution": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "embedding": lambda: nn.Embedding(7, 5),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_fresh_update_fits_its_layer_and_adds_nothing(kind):
    layer = PLAIN[kind]()
    handler = handler_of(type(layer))
    update = handler.new_update(layer, 2, 4, False, torch.float64)
    assert handler.factor_shapes(layer, 2) == (update.A.shape, update.B.shape)
    assert type(update) in handler.update_classes
    assert handler.misfit(layer, update) is None
    assert not update.delta().any()
    assert (update.r, update.lora_alpha, update.A.dtype) == (2, 4, torch.float64)


def test_factors_start_kaiming_uniform_and_zero():
    A, B = torch.empty(64, 100), torch.ones(5, 64)
    handler_of(nn.Linear).reset_factors(A, B)
    bound = 1 / math.sqrt(100)
    assert 0.95 * bound < A.abs().max() <= bound
    assert not B.any()


def test_an_update_of_another_width_is_named_with_both_sides():
    update = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), 1)
    assert handler_of(nn.Linear).misfit(nn.Linear(6, 5), update) == "lora_A (2, 3) in the adapter, (2, 6) in the model"
