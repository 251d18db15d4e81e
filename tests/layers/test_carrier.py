"""Whether a layer has an update, and which weight and Parameter it is for."""

import copy

import torch
from torch import nn

import loralib as lora
from kinds import COPIES
from models import close


def test_an_update_is_there_when_rank_and_factors_are():
    layer, x = lora.Linear(6, 4), torch.randn(3, 6)
    assert not layer.has_update
    layer.r, layer.scaling = 2, 0.5
    layer.lora_A, layer.lora_B = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(4, 2))
    wanted = nn.functional.linear(x, layer.weight + 0.5 * layer.lora_B @ layer.lora_A, layer.bias)
    for found in (layer, copy.deepcopy(layer), COPIES["torch.save"](layer), copy.deepcopy(layer).eval()):
        assert close(found(x), wanted)
    layer.r = 0
    for found in (layer, copy.deepcopy(layer), copy.deepcopy(layer).eval()):
        assert close(found(x), nn.functional.linear(x, layer.weight, layer.bias))
    layer.r = 2
    del layer.lora_A, layer.lora_B
    assert not layer.has_update
    assert close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_the_base_weight_is_the_same_parameter_whether_or_not_the_layer_is_merged():
    layer = lora.Linear(6, 4, r=2)
    W = layer.weight
    assert layer.pristine_weight is layer.home_of_weight() is W
    layer.eval()
    assert layer.pristine_weight is W
    assert layer.weight is not W
