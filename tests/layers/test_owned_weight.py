"""Weights that a module keeps itself, as layers: where they are, what they are called, and who merges them."""

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.layers.experts import ExpertWeight
from loralib.layers.owned_weight import OwnedWeight, OwnedWeightLoRA, Owner, leave
from mixtures import Experts, each, fill


def adapted() -> Experts:
    model = nn.ModuleDict({"experts": Experts()})
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=[], target_parameters=["experts.w1"]))
    fill(model)
    layer = model["experts"]
    assert isinstance(layer, Experts)
    return layer


def test_a_view_is_the_parameter_of_its_owner_and_no_child_of_it() -> None:
    owner = Experts().eval()
    view = OwnedWeight(owner, "w1")
    assert view.weight is owner.w1
    assert (view.slot, view.key, view.training) == ("w1", "w1", False)
    assert not list(view.parameters())
    assert not list(owner.children())
    assert ExpertWeight(owner, "w1").key == "lora_w1"


def test_the_owner_merges_and_restores_the_very_parameter() -> None:
    owner = adapted()
    assert isinstance(owner, Owner)
    W = owner.w1
    (layer,) = owner.adapted()
    assert isinstance(layer, OwnedWeightLoRA)
    assert layer.home_of_weight() is W
    layer.merge()
    assert owner.w1 is not W
    assert torch.allclose(owner.w1, W + layer.update.delta())
    assert layer.pristine_weight is W
    assert layer.weight_is_merged()
    owner.double()
    assert owner.w1.dtype == W.dtype == torch.float64
    layer.unmerge()
    assert owner.w1 is W


def test_a_twin_shares_all_and_is_not_merged() -> None:
    owner, x = adapted(), torch.randn(3, 4, 6)
    assert isinstance(owner, Owner)
    expected = owner(x, each)
    (layer,) = owner.adapted()
    layer.merge()
    twin = owner.unmerged_twin()
    torch.testing.assert_close(twin(x, each), expected)
    assert twin.adapted()[0].lora_A is layer.lora_A
    assert owner.w1 is not twin.w1


def test_a_weight_that_is_assigned_to_a_merged_owner_is_final() -> None:
    owner = adapted()
    assert isinstance(owner, Owner)
    (layer,) = owner.adapted()
    layer.merge()
    new = nn.Parameter(owner.w1.detach() * 2)
    with pytest.warns(UserWarning, match="it is final"):
        owner.w1 = new
    assert owner.w1 is new
    assert not layer.has_update


def test_an_owner_is_left_once_nothing_in_it_is_adapted() -> None:
    owner = adapted()
    leave(owner)
    assert isinstance(owner, Owner)
    del owner._modules["lora_w1"]
    leave(owner)
    assert type(owner) is Experts
