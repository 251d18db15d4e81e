"""Whatever an injection or an attachment raises half-way, the model is what it was."""

import copy

import pytest
import torch
from torch import nn

import loralib as lora
from loralib import layers
from loralib.surgery import saved_modules
from models import Encoder, expect_refusal, injected, mlp, snapshot, trained_head

ANY = ".*"  # message
FAILURES = [RuntimeError("out of memory"), TypeError("layout"), KeyboardInterrupt()]


def attention_model() -> nn.Module:
    return nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8), nn.MultiheadAttention(4, 2), nn.Linear(4, 4))


def failing_after(count: int, function, error: BaseException):
    """`function`, which raises instead of being called for the `count`-th time."""
    calls = []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) > count:
            raise error
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("make", [Encoder, attention_model])
def test_an_injection_that_fails_at_a_layer_changes_nothing(monkeypatch, make, count, error):
    model = make()
    monkeypatch.setattr(layers, "adopt_fitting", failing_after(count, layers.adopt_fitting, error))
    expect_refusal(type(error), ANY, model, lambda: lora.inject(model, lora.LoRAConfig(r=2)))


@pytest.mark.parametrize("count", [0, 2])
def test_an_injection_that_fails_inside_a_layer_changes_nothing(monkeypatch, count):
    model = Encoder()
    add = failing_after(count, layers.LinearLoRA.add_factors, MemoryError())
    monkeypatch.setattr(layers.LinearLoRA, "add_factors", add)
    expect_refusal(MemoryError, ANY, model, lambda: lora.inject(model, lora.LoRAConfig(r=2)))


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("first", [False, True])
def test_an_injection_that_fails_at_a_copy_changes_nothing(monkeypatch, count, first):
    model = Encoder()
    if first:
        injected(model, target_modules=["key"], bias="lora_only")
    monkeypatch.setattr(saved_modules, "_copy", failing_after(count, saved_modules._copy, MemoryError()))
    config = lora.LoRAConfig(r=2, target_modules=["query"], modules_to_save=["norm"])
    expect_refusal(MemoryError, ANY, model, lambda: lora.inject(model, config))


@pytest.mark.parametrize("count", [0, 1])
def test_an_attachment_that_fails_changes_nothing(monkeypatch, count):
    adapter, model = lora.extract(trained_head()), mlp(6, 5, 4)
    two = lora.Adapter(adapter.config, lora.extract(injected(copy.deepcopy(model))).layers)
    monkeypatch.setattr(layers, "adopt_fitting", failing_after(count, layers.adopt_fitting, MemoryError()))
    expect_refusal(MemoryError, ANY, model, lambda: lora.attach(model, two))
    monkeypatch.undo()
    monkeypatch.setattr(saved_modules, "_copy", failing_after(count, saved_modules._copy, MemoryError()))
    expect_refusal(MemoryError, ANY, model, lambda: lora.attach(model, adapter))


def test_after_a_failure_the_same_injection_goes_through(monkeypatch):
    model, x = Encoder().eval(), torch.randn(2, 6)
    y = model(x)
    monkeypatch.setattr(layers, "adopt_fitting", failing_after(2, layers.adopt_fitting, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        lora.inject(model, lora.LoRAConfig(r=2))
    monkeypatch.undo()
    before = snapshot(model)
    assert len(lora.inject(model, lora.LoRAConfig(r=2))) == 6
    assert torch.equal(model(x), y)
    lora.eject(model)
    assert snapshot(model) == before
