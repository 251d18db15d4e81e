"""LoRA goes out of a model without any trace."""

import copy
import pickle

import pytest
import torch
from torch import nn

import loralib as lora
from hf import tiny
from loralib.surgery.survey import Survey
from loralib.surgery.trainable import trained_names
from models import Encoder, expect_refusal, injected, mlp, snapshot, trained_head


def test_attach_and_eject_leave_no_trace():
    adapter, model = lora.extract(trained_head()), mlp(6, 5, 4)
    before = snapshot(model)
    lora.attach(model, adapter)
    lora.eject(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
@pytest.mark.parametrize("merged", [False, True])
def test_eject_after_training_leaves_the_very_model_that_was_there(bias, merged):
    model, x = Encoder(), torch.randn(4, 6)
    model.norm.eval()
    before = snapshot(model)
    injected(model, target_modules=["query", "proj"], bias=bias, modules_to_save=["norm"])
    model.requires_grad_(True)
    model(x).square().sum().backward()
    torch.optim.SGD([p for name, p in model.named_parameters() if name in trained_names(Survey(model))], lr=0.1).step()
    if merged:
        lora.merge(model)
    lora.eject(model)
    model.zero_grad()
    assert snapshot(model) == before


def test_eject_restores_a_bert():
    model = tiny("Bert")
    before = snapshot(model)
    injected(model, target_modules="all-linear", exclude_modules=["classifier", "pooler.dense"], modules_to_save=["classifier"])
    lora.eject(model)
    assert snapshot(model) == before


def test_eject_of_a_plain_model_is_an_error():
    for call in (lora.eject, lora.merge, lora.unmerge, lora.extract):
        with pytest.raises(lora.LayerError, match="Sequential has no layer with a LoRA update; inject a LoRAConfig"):
            call(mlp(3, 3))


def test_one_layer_that_cannot_be_ejected_keeps_all_adapted():
    model = injected(mlp(6, 5, 4))
    model[2].forward = model[2].forward
    expect_refusal(lora.LayerError, "'2' cannot be ejected: its forward was replaced", model, lambda: lora.eject(model))


def test_an_adapted_copy_is_ejected_apart_from_the_original():
    model = injected(mlp(6, 5, 4), target_modules=["0"], modules_to_save=["2"])
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        lora.eject(copied)
        assert type(copied[0]) is nn.Linear
        assert isinstance(model[0], lora.Linear)
    assert lora.extract(model).tensors.keys() == {"2.weight", "2.bias"}
