"""Which layers a configuration targets, and what it says when it targets none or the wrong ones."""

import pytest
import torch
from torch import nn

import loralib as lora
from hf import tiny
from models import Encoder, expect_refusal, snapshot

CONFIG = lora.LoRAConfig(r=2, lora_alpha=3)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ["proj", "encoder.0.query", "encoder.0.key", "encoder.1.query", "encoder.1.key", "encoder.proj"]),
        ({"target_modules": ["query"]}, ["encoder.0.query", "encoder.1.query"]),
        ({"target_modules": ["1.query", "encoder.0.key"]}, ["encoder.0.key", "encoder.1.query"]),
        ({"target_modules": ["proj"]}, ["proj", "encoder.proj"]),
        ({"target_modules": r"encoder\.\d\..*"}, ["encoder.0.query", "encoder.0.key", "encoder.1.query", "encoder.1.key"]),
        (
            {"target_modules": ["query", "key"], "exclude_modules": ["0.key"]},
            ["encoder.0.query", "encoder.1.query", "encoder.1.key"],
        ),
        ({"exclude_modules": r".*(key|proj)"}, ["encoder.0.query", "encoder.1.query"]),
    ],
)
def test_inject_adapts_what_is_named_and_says_so(config, names):
    model = Encoder()
    assert lora.inject(model, lora.LoRAConfig(r=2, **config)) == names
    assert {n for n, m in model.named_modules() if isinstance(m, lora.LoRALayer)} == set(names)


def test_all_linear_leaves_the_output_embedding_alone():
    model = tiny("Bert", "LMHeadModel", is_decoder=True)
    assert not [name for name in lora.inject(model, CONFIG) if "decoder" in name]


REFUSALS = {
    "a misspelt name": (
        {"target_modules": ["qurey"]},
        r"'qurey' matches no layer of Encoder. Nearest names: query \(2 layers\)",
    ),
    "one misspelt name of two": ({"target_modules": ["query", "kee"]}, r"'kee' matches no layer .* key \(2 layers\)"),
    "half a name": ({"target_modules": ["uery"]}, "'uery' matches no layer"),
    "a name where an expression belongs": ({"target_modules": "query"}, r"give a list: \['query'\]"),
    "an expression that matches nothing": ({"target_modules": r".*\.quarry"}, "matches the whole name of no layer of Encoder"),
    "no expression": ({"target_modules": "(query"}, "is not a regular expression"),
    "an empty list": ({"target_modules": []}, r"target_modules=\[\] names no layer"),
    "a layer of another kind": ({"target_modules": ["norm"]}, "'norm' of Encoder cannot be adapted: BatchNorm1d layers"),
    "a container": ({"target_modules": ["encoder"]}, "'encoder' of Encoder cannot be adapted: ModuleDict layers"),
    "an exclusion that matches nothing": ({"exclude_modules": ["kee"]}, "exclude_modules=.*'kee' matches no layer"),
    "an exclusion of everything": ({"target_modules": ["query"], "exclude_modules": ["query"]}, "leaves no layer"),
    "a rank for nothing": ({"target_modules": ["query"], "rank_pattern": {"key": 4}}, "rank_pattern: 'key' fits none"),
    "an alpha for nothing": ({"target_modules": ["query"], "alpha_pattern": {"kye": 4}}, "alpha_pattern: 'kye' fits none"),
    "a module to save that is not there": ({"modules_to_save": ["head"]}, "modules_to_save=.*'head' matches no layer"),
    "a target that is saved": ({"target_modules": ["query"], "modules_to_save": ["0"]}, "both a target and in modules_to_save"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_configuration_that_does_not_fit_is_refused_and_nothing_changes(case):
    config, message = REFUSALS[case]
    model = Encoder()
    refusal = f"(?s){message}.*Nothing was changed"
    expect_refusal(lora.TargetError, refusal, model, lambda: lora.inject(model, lora.LoRAConfig(**config)))


def test_injecting_twice_is_refused_and_injecting_other_layers_is_not():
    model = Encoder()
    config = lora.LoRAConfig(r=2, target_modules=["query"])
    lora.inject(model, config)
    expect_refusal(lora.TargetError, "a LoRA layer already; eject it first", model, lambda: lora.inject(model, config))
    before = snapshot(Encoder())
    assert lora.inject(model, lora.LoRAConfig(r=2, target_modules=["key"])) == ["encoder.0.key", "encoder.1.key"]
    lora.eject(model)
    assert [entry[2] for entry in snapshot(model)] == [entry[2] for entry in before]


def test_a_model_that_is_itself_a_layer_is_refused():
    model = nn.Linear(4, 4)
    expect_refusal(lora.TargetError, "is itself a layer.*nn.Sequential", model, lambda: lora.inject(model, CONFIG))


def test_a_model_without_linear_layers_is_refused():
    model = nn.Sequential(nn.ReLU())
    expect_refusal(lora.TargetError, "no linear layer to adapt", model, lambda: lora.inject(model, CONFIG))


def test_the_nearest_names_are_of_layers_that_can_be_targets():
    model = nn.ModuleDict({"query": nn.Linear(4, 4), "queries": nn.LayerNorm(4), "block": nn.ModuleDict({"qeurys": nn.ReLU()})})
    with pytest.raises(lora.TargetError, match=r"Nearest names: query \(1 layer\)\. "):
        lora.inject(model, lora.LoRAConfig(target_modules=["querie"]))
    with pytest.raises(lora.TargetError, match="'queries' of ModuleDict cannot be adapted: LayerNorm layers"):
        lora.inject(model, lora.LoRAConfig(target_modules=["queries"]))


def test_the_nearest_names_of_a_renaming_are_modules():
    update = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)
    adapter = lora.Adapter(lora.LoRAConfig(), {"unet.mid.to_q": update})
    with pytest.raises(lora.TargetError, match=r"Nearest names: unet, "):
        adapter.rename({"unett": ""})
