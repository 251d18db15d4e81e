"""Modules trained in full in addition to the factors: copies are trained, and the originals come back."""

import pytest
import torch
from torch import nn

import loralib as lora
from hf import tiny
from models import Encoder, Tied, close, expect_refusal, injected, mlp, same_bits, snapshot, trainable, trained_head

CONFIG = lora.LoRAConfig(r=2, lora_alpha=3)


def test_saved_modules_train_copies_and_eject_restores_the_originals():
    model = Encoder()
    before, originals = snapshot(model), dict(model.norm.named_parameters())
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["query"], modules_to_save=["norm"]))
    lora.mark_only_lora_as_trainable(model)
    assert {name for name in trainable(model) if "lora_" not in name} == {"norm.weight", "norm.bias"}
    flags = {id(p): p.requires_grad for p in originals.values()}
    model(torch.randn(4, 6)).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1).step()
    assert model.norm.num_batches_tracked == 1
    assert not same_bits(model.norm.running_mean, torch.zeros(6))
    assert set(lora.extract(model).tensors) == {
        f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    lora.eject(model)
    model.requires_grad_(True)
    assert {id(p): p.requires_grad for p in model.norm.parameters()} == flags
    model.zero_grad()
    assert snapshot(model) == before


def test_nested_heads_are_saved_whole():
    model = tiny("Roberta")
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
    tensors = lora.extract(model).tensors
    assert set(tensors) == {f"classifier.{part}.{t}" for part in ("dense", "out_proj") for t in ("weight", "bias")}


@pytest.mark.parametrize("name", ["embed", "head"])
def test_one_of_two_tied_modules_cannot_be_trained_alone(name):
    model = Tied()
    config = lora.LoRAConfig(r=2, target_modules=["body"], modules_to_save=[name])
    expect_refusal(lora.TargetError, "is tied to .*; name the modules of both", model, lambda: lora.inject(model, config))


def test_two_tied_modules_are_trained_as_one():
    model, ids = Tied(), torch.arange(4)
    before = snapshot(model)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["body"], modules_to_save=["embed", "head"]))
    assert model.head.weight is model.embed.weight
    with torch.no_grad():
        model.embed.weight.add_(1)
    y, adapter = model(ids), lora.extract(model)
    lora.eject(model)
    assert snapshot(model) == before
    lora.attach(model, adapter)
    assert model.head.weight is model.embed.weight
    assert same_bits(model(ids), y)


def test_a_bias_tied_to_one_that_is_not_trained_is_refused():
    model = mlp(6, 6, 6)
    model[2].bias = model[0].bias
    config = lora.LoRAConfig(r=2, target_modules=["0"], bias="lora_only")
    expect_refusal(lora.TargetError, "0.bias is tied to 2.bias", model, lambda: lora.inject(model, config))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"], bias="all"))
    assert model[0].bias is model[2].bias


def test_disabled_shows_the_originals_of_what_was_trained_beside():
    model, x = mlp(6, 5, 4), torch.randn(3, 6)
    base = model(x)
    injected(model, target_modules=["0"], modules_to_save=["2"], bias="all")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
        model[0].weight.sub_(1)
    y = model(x)
    with lora.disabled(model):
        assert close(model(x), base, factor=8)
        assert model[2].weight.abs().max() < 1
    assert same_bits(model(x), y)


def test_originals_follow_the_model_to_another_dtype():
    model = trained_head()
    original = vars(model)["_lora_extra_tensors"].originals["2.weight"].clone()
    model.to(torch.float64)
    with lora.disabled(model):
        assert same_bits(model[2].weight, original.double())
    lora.eject(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_what_would_mix_up_originals_is_refused_inside_disabled():
    model = trained_head()
    adapter = lora.extract(model)
    calls = [
        lambda: lora.eject(model),
        lambda: lora.extract(model),
        lambda: lora.attach(model, adapter),
        lambda: lora.inject(model, CONFIG),
        lambda: lora.lora_state_dict(model),
        lambda: lora.merge(model, keep=False),
    ]
    with lora.disabled(model):
        for call in calls:
            expect_refusal(lora.LayerError, "disabled", model, call)
    assert lora.extract(model).tensors.keys() == adapter.tensors.keys()


def test_a_module_with_two_names_is_trained_once_and_restored():
    model = Encoder()
    before, original = snapshot(model), model.proj.bias
    injected(model, target_modules=["query"], modules_to_save=["proj"], bias="all")
    assert model.again.bias is not original
    with lora.disabled(model):
        assert model.again.bias is model.proj.bias is original
    assert model.again.bias is not original
    lora.attach(model, lora.extract(model))
    lora.eject(model)
    assert snapshot(model) == before


def test_injections_into_a_part_and_then_the_whole_are_disabled_and_ejected_in_turn() -> None:
    model = nn.Sequential(mlp(6, 5, 4), nn.Linear(4, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora.inject(model[0], lora.LoRAConfig(r=2, target_modules=["0"], bias="all"))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules="1", bias="all"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    learned = {name: tensor.clone() for name, tensor in lora.extract(model).tensors.items()}
    with lora.disabled(model):
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters() if name in learned)
    assert all(torch.equal(tensor, learned[name]) for name, tensor in lora.extract(model).tensors.items())
    lora.eject(model)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in learned)
