"""loralib 0.1's base class: the attributes that a layer gets, and the values that are refused."""

import pickle

import pytest
import torch
from torch import nn

import loralib as lora
from models import trainable


class Mine(nn.Module, lora.LoRALayer):
    def __init__(self, r: int = 2, lora_alpha: float = 4, lora_dropout: float = 0.0, merge_weights: bool = True):
        nn.Module.__init__(self)
        lora.LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        if r:
            self.lora_gate = nn.Parameter(torch.zeros(3))


def test_the_attributes_are_those_of_0_1():
    layer = Mine(r=2, lora_alpha=4, lora_dropout=0.25, merge_weights=False)
    assert (layer.r, layer.lora_alpha, layer.merged, layer.merge_weights) == (2, 4, False, False)
    assert isinstance(layer.lora_dropout, nn.Dropout)
    assert layer.lora_dropout.p == 0.25
    assert Mine().merge_weights


def test_without_dropout_there_is_no_submodule_and_nothing_is_dropped():
    layer, x = Mine(lora_dropout=0), torch.randn(3)
    assert list(layer.children()) == []
    assert layer.lora_dropout(x) is x
    assert pickle.loads(pickle.dumps(layer)).lora_dropout(x) is x


def test_the_dropout_follows_the_mode_of_the_layer():
    layer, x = Mine(lora_dropout=0.5), torch.ones(64)
    assert sorted(set(layer.lora_dropout(x).tolist())) == [0, 2]
    layer.eval()
    assert layer.lora_dropout(x) is x


def test_the_tensors_of_such_a_layer_are_trained_and_saved():
    model = nn.Sequential(nn.Linear(2, 2), Mine())
    lora.mark_only_lora_as_trainable(model)
    assert trainable(model) == set(lora.lora_state_dict(model)) == {"1.lora_gate"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": -1}, "r=-1"),
        ({"r": 1.5}, "r=1.5"),
        ({"lora_alpha": 0}, "lora_alpha=0"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
        ({"lora_dropout": -0.5}, "lora_dropout=-0.5"),
        ({"lora_dropout": 1.5}, "lora_dropout=1.5"),
    ],
)
def test_values_that_cannot_work_are_refused(values, message):
    with pytest.raises(lora.ConfigError, match=message):
        Mine(**values)


def test_with_rank_0_the_scaling_does_not_matter():
    assert Mine(r=0, lora_alpha=0).r == 0
