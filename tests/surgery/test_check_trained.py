"""Factors that the backward pass does not reach are named, and extract refuses them when it is asked to."""

import copy

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from models import injected, mlp, same_bits


class Reading(nn.Module):
    """Two layers, of which one is read without being called, and one that the loss does not depend on."""

    def __init__(self):
        super().__init__()
        self.called, self.read, self.idle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.idle(x)
        return nn.functional.linear(self.called(x), self.read.weight, self.read.bias)


def trained(model: nn.Module, frozen: tuple[str, ...] = ()) -> nn.Module:
    lora.mark_only_lora_as_trainable(model)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    model(torch.randn(3, 4)).square().sum().backward()
    return model


def test_all_is_well_when_every_factor_has_a_gradient():
    assert lora.check_trained(trained(injected(mlp(4, 5, 3)))) == {}


@pytest.mark.parametrize("wrapped", [False, True])
def test_factors_without_a_gradient_are_named_where_others_have_one(wrapped):
    model = trained(injected(Reading()))
    with pytest.warns(UserWarning, match=r"4 LoRA factors do not train: read.lora_A: it has no gradient.*idle.lora_B"):
        found = lora.check_trained(torch.compile(model, backend="eager") if wrapped else model)
    assert set(found) == {f"{layer}.lora_{key}" for layer in ("read", "idle") for key in "AB"}


def test_a_fresh_adapter_whose_update_is_zero_is_reached_by_its_gradient():
    model = mlp(4, 5, 3)
    lora.inject(model, lora.LoRAConfig(r=2))
    assert lora.check_trained(trained(model)) == {}


def test_factors_that_are_frozen_on_purpose_are_not_named():
    model = injected(mlp(4, 5, 3))
    assert lora.check_trained(trained(model, frozen=("0.lora_A", "2.lora_B"))) == {}


def test_a_merged_layer_is_named_as_merged():
    model = injected(mlp(4, 5, 3))
    model[0].merge()
    with pytest.warns(UserWarning, match=r"2 LoRA factors do not train: 0.lora_A: its layer is merged"):
        assert set(lora.check_trained(trained(model))) == {"0.lora_A", "0.lora_B"}


def test_a_model_that_is_merged_as_a_whole_is_named_too():
    model = injected(mlp(4, 5, 3))
    lora.mark_only_lora_as_trainable(model)
    lora.merge(model)
    with pytest.warns(UserWarning, match="4 LoRA factors do not train.*merged"):
        assert len(lora.check_trained(model)) == 4


@pytest.mark.parametrize("when", ["before the backward pass", "after zero_grad", "all frozen"])
def test_a_check_at_the_wrong_time_is_an_error(when):
    model = injected(mlp(4, 5, 3))
    if when == "all frozen":
        model.requires_grad_(False)
    elif when == "after zero_grad":
        trained(model).zero_grad()
    with pytest.raises(lora.LayerError, match="No LoRA factor of Sequential has a gradient: check after the first backward"):
        lora.check_trained(model)


def test_a_model_without_lora_is_an_error():
    with pytest.raises(lora.LayerError, match="has no layer with a LoRA update"):
        lora.check_trained(mlp(4, 3))


def test_extract_refuses_updates_that_are_still_zero_when_it_is_strict():
    model = Reading()
    lora.inject(model, lora.LoRAConfig(r=2))
    trained(model)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert list(lora.extract(model).layers) == ["called", "read", "idle"]
    with pytest.raises(lora.LayerError, match=r"2 of 3 updates are zero, 'read' first.*check_trained.*Nothing was extracted"):
        lora.extract(model, strict=True)
    whole = injected(Reading())
    adapter = lora.extract(whole, strict=True)
    assert all(same_bits(update.B, whole.get_submodule(name).lora_B) for name, update in adapter.layers.items())


def test_an_embedding_that_was_not_trained_is_zero_by_its_other_factor():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0", "1"]))
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        model[0].lora_A.fill_(1)
        model[1].lora_B.fill_(1)
    assert len(lora.extract(model, strict=True).layers) == 2
    with pytest.raises(lora.LayerError, match="2 of 2 updates are zero"):
        lora.extract(fresh, strict=True)
