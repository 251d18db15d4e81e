"""A module that was given another class in place keeps what it had, its own forward included, and is given back as it was."""

import copy
import functools
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import loralib as lora
from loralib import layers
from loralib.layers import adopted
from models import Doubling, adopt, close, delta_of, same_bits, snapshot
from peers import library


def quantize_inputs(layer: nn.Linear) -> None:
    """As compressed-tensors does: a method of the instance, which calls what was its forward before."""
    original = layer.forward.__func__

    @functools.wraps(original)
    def wrapped(self, *args, **kwargs):
        return original.__get__(self, type(self))(args[0].round(decimals=1), *args[1:], **kwargs)

    layer.forward = MethodType(wrapped, layer)


def ask_the_class(layer: nn.Linear) -> None:
    """As others do: a method of the instance, which calls the forward of the class that the layer has then."""

    def wrapped(self, x):
        return self.__class__.forward(self, x.round(decimals=1))

    layer.forward = MethodType(wrapped, layer)


@pytest.mark.parametrize("put", [quantize_inputs, ask_the_class])
def test_a_method_that_another_library_put_on_the_layer_before_is_carried_and_ends(put):
    layer, x = nn.Linear(6, 5), torch.randn(3, 6)
    put(layer)
    y, before = layer(x), snapshot(layer)
    layers.adopt(layer, lora.LoRAUpdate(torch.randn(2, 6), torch.randn(5, 2), lora_alpha=3))
    assert close(layer(x), y + F.linear(x, layer.update.delta()), factor=64)
    other = copy.deepcopy(layer)
    assert same_bits(other(x), layer(x))
    layers.eject(layer)
    assert snapshot(layer) == before


def test_a_method_put_on_an_adapted_layer_that_has_one_already_ends():
    layer, x = nn.Linear(6, 5), torch.randn(3, 6)
    quantize_inputs(layer)
    layers.adopt(layer, lora.LoRAUpdate(torch.randn(2, 6), torch.randn(5, 2), lora_alpha=3))
    quantize_inputs(layer)
    rounded = x.round(decimals=1)
    expected = F.linear(rounded, layer.update.effective_weight(layer.weight), layer.bias)
    assert close(layer(x), expected, factor=64)


def test_what_a_carried_method_writes_on_the_layer_stays():
    layer = nn.Linear(6, 5)

    def counting(self, x):
        self.calls = vars(self).get("calls", 0) + 1
        return nn.Linear.forward(self, x)

    layer.forward = MethodType(counting, layer)
    layers.adopt(layer, lora.LoRAUpdate(torch.randn(2, 6), torch.randn(5, 2), lora_alpha=3))
    for _ in range(3):
        layer(torch.randn(3, 6))
    assert layer.calls == 3


def test_a_forward_that_is_assigned_is_carried_unless_it_wraps_the_layers_own():
    layer, x = with_own_forward(nn.Linear(6, 5)), torch.randn(3, 6)
    adopt(layer)
    y = layer(x)
    calls = []
    wrapper = functools.wraps(layer.forward)(lambda x, own=layer.forward: calls.append(x) or own(x))
    layer.forward = functools.wraps(wrapper)(lambda x: 1 * wrapper(x))  # as accelerate's hooks, one around the other
    assert same_bits(layer(x), y)
    assert len(calls) == 1
    del layer.forward
    layer.forward = lambda x: torch.zeros(3, 5)
    assert close(layer(x), delta_of(layer, x), factor=16)
    layers.eject(layer)
    assert not layer(x).any()


def with_own_forward(layer: nn.Linear) -> nn.Linear:
    original = layer.forward
    layer.forward = functools.wraps(original)(lambda x: original(x) + 7)
    return layer


def test_a_forward_on_the_instance_is_carried_as_the_base_forward_and_given_back():
    layer, x = with_own_forward(nn.Linear(6, 5)), torch.randn(3, 6)
    before, y, own = snapshot(layer), layer(x), layer.forward
    adopt(layer)
    assert close(layer(x), y + delta_of(layer, x), factor=16)
    layers.eject(layer)
    assert layer.forward is own
    assert snapshot(layer) == before


def test_a_forward_that_was_replaced_after_adoption_refuses_eject():
    layer = adopt(nn.Linear(6, 5))
    with_own_forward(layer)
    with pytest.raises(lora.LayerError, match=r"its forward was replaced after it was adapted .* Nothing was changed"):
        layers.eject(layer)
    assert layer.r == 2


def test_hooks_of_accelerate_can_be_removed_after_adoption_without_losing_the_update():
    hooks = library("accelerate.hooks")
    layer, x = nn.Linear(6, 5), torch.randn(3, 6)
    hooks.add_hook_to_module(layer, hooks.ModelHook())
    adopt(layer)
    y = layer(x)
    hooks.remove_hook_from_module(layer)
    assert same_bits(layer(x), y)
    layers.eject(layer)
    assert type(layer) is nn.Linear
    assert not same_bits(layer(x), y)


def test_a_forward_with_another_weight_leaves_the_layer_as_it_is():
    layer, x = adopt(Doubling(6, 5)), torch.randn(3, 6)
    before, W = snapshot(layer), torch.randn(5, 6)
    assert same_bits(layer.forward_with(W, x), 2 * F.linear(x, W, layer.bias))
    assert snapshot(layer) == before


def test_a_layer_that_stays_called_has_one_hook_and_none_afterwards():
    layer = nn.Linear(6, 5)
    before = snapshot(layer)
    adopt(layer)
    layer.stay_called()
    layer.stay_called()
    assert len(layer._forward_pre_hooks) == 1
    assert layer(torch.randn(3, 6)).shape == (3, 5)
    layer.give_back()
    assert snapshot(layer) == before


def test_the_attributes_of_all_mixins_are_known_once():
    class First(adopted.Adopted):
        own_attributes = ("lora_A", "shared")

    class Second(First):
        own_attributes = ("shared", "lora_B")

    assert adopted.own_attributes(Second) == ("shared", "lora_B", "lora_A", "_carried_forward", "_stays_called")
    assert adopted.own_attributes(nn.Linear) == ()
