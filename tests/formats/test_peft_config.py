"""PEFT's configuration: what its fields say, which are refused by name, and what is written for an adapter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import loralib as lora
from formats.conftest import CONFIG, factors, folder_with
from loralib.formats.peft_config import configuration, configuration_of, refuse_costly, refuse_unknown
from peers import library


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": None},
        {"future_field": None},
        {"future_field": {"a": None, "b": []}},
        {"qalora_group_size": 16},
        {"trainable_token_indices": None, "lora_bias": False, "runtime_config": {"ephemeral_gpu_offload": False}},
    ],
)
def test_fields_that_are_off_do_not_matter(fields, tmp_path):
    assert lora.load(folder_with(tmp_path / "a", factors(), CONFIG | fields)).layers["0"].scaling == 2


def test_every_default_of_this_peft_is_known(tmp_path):
    fields = library("peft").LoraConfig(r=2, lora_alpha=4, target_modules=["0"]).to_dict()
    fields |= {"peft_type": "LORA", "target_modules": ["0"]}
    assert lora.load(folder_with(tmp_path / "a", factors(), fields)).layers["0"].scaling == 2


@pytest.mark.parametrize(
    ("fields", "telling"),
    [
        ({"future_size": 16, "peft_version": "9.1"}, r"future_size=16 is not known here.*wrote it \(9.1\), take it out"),
        ({"future_config": {"a": 1}}, r"future_config=\{'a': 1\} is not known here"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens=\[1\] asks for an update that acts behind certain tokens"),
        ({"init_lora_weights": "pissa"}, r"path_initial_model_for_weight_conversion"),
    ],
)
def test_fields_that_may_matter_are_refused_by_name(fields, telling, tmp_path):
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(folder_with(tmp_path / "a", factors(), CONFIG | fields))


def written(layers: Mapping[str, lora.LoRAUpdate], **fields: Any) -> dict[str, Any]:
    settings = fields.pop("settings", lora.LoRAConfig())
    return configuration_of(lora.Adapter(settings, layers, **fields), layers)


def of(r: int = 2, lora_alpha: float = 4, **fields: Any) -> lora.LoRAUpdate:
    return lora.LoRAUpdate(torch.ones(r, 3), torch.ones(4, r), lora_alpha, **fields)


def test_a_configuration_that_is_written_is_read_as_it_was():
    layers = {"a": of(), "b": of(3), "c": of(2, 7)}
    settings = lora.LoRAConfig(lora_dropout=0.1, bias="all", modules_to_save=["head"])
    values = written(layers, settings=settings, metadata={"task_type": "SEQ_CLS"})
    assert json.loads(json.dumps(values)) == values
    refuse_unknown(Path("x"), values)
    assert configuration(values) == lora.Adapter(settings, layers).config
    assert (values["peft_type"], values["task_type"], values["revision"], values["use_dora"]) == (
        "LORA",
        "SEQ_CLS",
        None,
        False,
    )
    assert values.keys() <= set(library("peft").LoraConfig().to_dict())


def test_dora_and_rows_of_tokens_are_said():
    assert written({"a": of(magnitude=torch.ones(4))})["use_dora"] is True
    rows = {"emb.weight": lora.TokenRows((3, 1), torch.ones(2, 3))}
    assert written({"a": of()}, rows=rows)["trainable_token_indices"] == {"emb": [3, 1]}
    assert written({"a": of()})["trainable_token_indices"] is None


@pytest.mark.parametrize(
    ("layers", "fields", "telling"),
    [
        ({"a": of()}, {"metadata": {"author": "me"}}, r"no place for the metadata \['author'\]"),
        ({"a": of(), "b": of(use_rslora=True)}, {}, "Some layers scale by lora_alpha / √r"),
        ({"a": of(), "b": of(magnitude=torch.ones(4))}, {}, "Some layers are DoRA"),
        ({"a": of()}, {"rows": {"emb.bias": lora.TokenRows((1,), torch.ones(1, 3))}}, "rows of 'emb.bias'"),
        ({"emb": of()}, {"rows": {"emb.weight": lora.TokenRows((1,), torch.ones(1, 3))}}, "rows of 'emb.weight'"),
    ],
)
def test_what_no_configuration_can_say_is_refused(layers, fields, telling):
    with pytest.raises(lora.FormatError, match=rf"{telling}.*Nothing was written"):
        written(layers, **fields)


def test_fields_that_are_missing_or_none_have_the_defaults():
    assert configuration({}) == configuration({"r": None, "target_modules": None}) == lora.LoRAConfig()
    assert configuration({"r": 3, "enable_lora": [True, False]}) == lora.LoRAConfig(r=3, enable_lora=[True, False])
    with pytest.raises(lora.ConfigError, match="r=0"):
        configuration({"r": 0})


def test_an_expression_that_takes_too_long_is_refused_with_its_file():
    slow = lora.LoRAConfig(rank_pattern={"(a*)*b": 2})
    with pytest.raises(lora.FormatError, match=r"folder/x: .*rank_pattern"):
        refuse_costly("folder/x", slow, ["a" * 60])
    refuse_costly("folder/x", lora.LoRAConfig(rank_pattern={"q": 2}), ["a" * 60])
