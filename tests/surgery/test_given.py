"""What inject and attach take for a configuration and an adapter: every form that people have, if they can do it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import loralib as lora
from models import plain, snapshot, with_lora
from peers import library


def test_attach_takes_the_path_of_an_adapter(tmp_path: Path) -> None:
    model = with_lora()
    nn.init.normal_(model[0].lora_B)
    lora.save(lora.extract(model), tmp_path)
    for path in (tmp_path, str(tmp_path)):
        other = plain()
        assert lora.attach(other, path) == ["0", "2"]
        assert lora.extract(other) == lora.extract(model)


def test_inject_takes_a_dictionary_of_the_fields() -> None:
    model, other = plain(), plain()
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["0"], "rank_pattern": {"0": 2}}
    torch.manual_seed(1)
    lora.inject(model, fields)
    torch.manual_seed(1)
    lora.inject(other, lora.LoRAConfig(**fields))
    assert lora.extract(model) == lora.extract(other)
    with pytest.raises(lora.ConfigError, match=r"LoRAConfig has no field 'lora_rank'\. Nearest: lora_"):
        lora.inject(plain(), {"lora_rank": 4})


def with_head() -> nn.Module:
    return nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8), "classifier": nn.Linear(8, 2)})


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["query", "value"]},
        {"target_modules": "(query|value)", "r": 4, "lora_alpha": 16, "use_rslora": True},
        {"target_modules": ["query"], "lora_dropout": 0.1, "bias": "all", "rank_pattern": {"query": 2}},
        {"target_modules": "all-linear", "exclude_modules": ["value"], "modules_to_save": ["classifier"]},
        {"target_modules": ["query"], "task_type": "SEQ_CLS"},
    ],
)
def test_inject_takes_what_peft_would_be_given(fields: dict[str, Any]) -> None:
    """The layers, shapes, scalings and trained names are those that PEFT makes of the same object."""
    peft = library("peft")
    config = peft.LoraConfig(**fields)
    for given in (config, config.to_dict()):
        model = with_head()
        bound = lora.inject(model, given)
        lora.mark_only_lora_as_trainable(model)
        theirs = library("peft").tuners.lora.LoraModel(with_head(), peft.LoraConfig(**fields), "default")
        adapted = {name: m for name, m in theirs.model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
        assert set(bound) == set(adapted)
        for name in bound:
            layer: Any = model.get_submodule(name)
            assert layer.scaling == pytest.approx(adapted[name].scaling["default"])
            assert layer.lora_A.shape == adapted[name].lora_A["default"].weight.shape
        saved = fields.get("modules_to_save") or (["classifier"] if "task_type" in fields else [])
        assert lora.extract(model).config.modules_to_save == tuple(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["query"], "init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"target_modules": ["query"], "use_dora": True}, "use_dora=True"),
        ({"target_modules": ["query"], "layers_to_transform": [0]}, r"layers_to_transform=\[0\]"),
        ({}, "target_modules=None"),
        ({"target_modules": ["query"], "lora_bias": True}, "lora_bias=True"),
    ],
)
def test_inject_refuses_what_peft_would_do_otherwise(fields: dict[str, Any], message: str) -> None:
    model = with_head()
    before = snapshot(model)
    with pytest.raises(lora.ConfigError, match=message) as caught:
        lora.inject(model, library("peft").LoraConfig(**fields))
    assert re.search("Nothing was changed", str(caught.value))
    assert snapshot(model) == before
