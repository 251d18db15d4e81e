"""Adapters out of models: complete, described, and independent of the model."""

import pytest
import torch
from torch import nn

import loralib as lora
from models import Encoder, bits, injected, mlp, trained_head

CONFIG = lora.LoRAConfig(r=2, lora_alpha=3)


def test_the_configuration_that_is_extracted_describes_the_layers():
    model = injected(Encoder(), target_modules=["proj", "query"], rank_pattern={"^proj": 3}, alpha_pattern={"query": 7})
    config, other = lora.extract(model).config, Encoder()
    lora.inject(other, config)
    for name, update in lora.extract(model).layers.items():
        twin = other.get_submodule(name).update
        assert (twin.r, twin.lora_alpha) == (update.r, update.lora_alpha)


def test_an_extracted_adapter_shares_no_memory_with_the_model():
    model = trained_head()
    adapter = lora.extract(model)
    before = bits(adapter.layers["0"].B), bits(adapter.tensors["2.weight"])
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    other = mlp(6, 5, 4)
    lora.attach(other, adapter)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert (bits(adapter.layers["0"].B), bits(adapter.tensors["2.weight"])) == before


def test_a_layer_of_ones_own_cannot_be_extracted_and_says_what_to_do():
    class Mine(nn.Module, lora.LoRALayer):
        def __init__(self):
            nn.Module.__init__(self)
            lora.LoRALayer.__init__(self, 1, 1, 0.0, False)
            self.lora_A = nn.Parameter(torch.zeros(1))

    model = nn.Sequential(Mine(), lora.Linear(2, 2, r=1))
    with pytest.raises(lora.LayerError, match="'0' is a Mine, whose update only it knows; use lora_state_dict"):
        lora.extract(model)
    assert list(lora.lora_state_dict(model)) == ["0.lora_A", "1.lora_A", "1.lora_B"]


def test_tensors_without_data_are_refused_not_saved_empty():
    model = injected(mlp(6, 5))
    model[0].lora_B.data = torch.empty(0, 2)
    with pytest.raises(lora.LayerError, match=r"'0.lora_B' holds no data .*gather them first"):
        lora.extract(model)
    with torch.device("meta"):
        offloaded = mlp(6, 5)
    lora.inject(offloaded, CONFIG)
    with pytest.raises(lora.LayerError, match="holds no data"):
        lora.extract(offloaded)
