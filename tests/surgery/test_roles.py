"""Every linear layer of the blocks of known models plays one role."""

import itertools

import pytest
import torch
import transformers
from torch import nn

import loralib as lora
from hf import encoder_shape
from loralib import architectures
from loralib.architectures import ROLES
from loralib.errors import ConfigError
from loralib.recipes.nlg import language_models
from loralib.surgery.roles import role_targets
from recipes.nlg.conftest import decoder_shape


@pytest.mark.parametrize("kind", architectures.ENCODERS)
def test_every_linear_layer_of_the_body_plays_one_role(kind: str) -> None:
    model = encoder_shape(kind)
    by_role = {role: role_targets(model, [role])["target_modules"] for role in ROLES}
    blocks = 1 if kind == "albert" else 2  # whose blocks share their weights
    assert {role: len(names) for role, names in by_role.items()} == {
        "query": blocks,
        "key": blocks,
        "value": blocks,
        "output": blocks,
        "mlp": 2 * blocks,
    }
    everything = role_targets(model, ROLES)["target_modules"]
    assert sorted(everything) == sorted(name for names in by_role.values() for name in names)
    shapes = {role: {tuple(model.get_submodule(n).weight.shape) for n in names} for role, names in by_role.items()}
    assert all(shapes[role] == {(16, 16)} for role in ROLES[:4])
    assert shapes["mlp"] == {(24, 16), (16, 24)}
    blocks_linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ("layer" in name) and "projection" not in name and "pos_" not in name
    }
    assert blocks_linear == set(everything)


def test_a_model_that_is_not_known_is_told_what_to_give() -> None:
    config = transformers.AutoConfig.for_model("bloom", hidden_size=16, n_layer=1, n_head=2, vocab_size=30)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ConfigError, match=r"layers of a bloom model are query, value is not known; give --target-modules"):
        role_targets(model, ["query", "value"])


@pytest.mark.parametrize("kind", architectures.DECODERS)
def test_every_linear_layer_of_a_decoders_blocks_plays_one_role(kind: str) -> None:
    model = decoder_shape(kind)
    by_role = {role: role_targets(model, [role])["target_modules"] for role in ROLES}
    fused = kind in architectures.FUSED
    rows = {role: {model.get_submodule(name).weight.shape for name in names} for role, names in by_role.items()}
    if fused:
        attention = [f"transformer.h.{i}.attn.c_attn" for i in range(2)]
        assert all(by_role[role] == attention for role in ("query", "key", "value"))
    else:
        assert rows["query"] == {(16, 16)}
        assert rows["key"] == rows["value"]
    assert rows["output"] == {(16, 16)}
    assert all(16 in shape and shape != (16, 16) for shape in rows["mlp"])
    gated = "gate_proj" in str(by_role["mlp"])
    assert [len(names) for names in by_role.values()] == [2, 2, 2, 2, 6 if gated else 4]
    everything = role_targets(model, ROLES)["target_modules"]
    played = [name for role, names in by_role.items() for name in names if not (fused and role in ("key", "value"))]
    assert sorted(everything) == sorted(played)
    inside = {id(module) for module in language_models.blocks(model).modules()}
    assert set(everything) == {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | transformers.pytorch_utils.Conv1D) and id(module) in inside
    }


SUBSETS = [subset for n in range(1, 6) for subset in itertools.combinations(ROLES, n)]


@pytest.mark.parametrize("chosen", SUBSETS, ids=",".join)
def test_of_the_fused_layer_of_gpt2_the_slices_of_the_roles_are_adapted(chosen: tuple[str, ...]) -> None:
    model = decoder_shape("gpt2")
    targets = role_targets(model, chosen)
    mask = tuple(role in chosen for role in ("query", "key", "value"))
    expected = {"attn.c_attn": any(mask), "attn.c_proj": "output" in chosen, "mlp.c_fc": "mlp" in chosen}
    expected["mlp.c_proj"] = expected["mlp.c_fc"]
    names = {f"transformer.h.{i}.{ending}" for i in range(2) for ending, on in expected.items() if on}
    assert set(targets["target_modules"]) == names
    assert ("enable_lora" in targets) == any(mask)
    assert set(lora.inject(model, lora.LoRAConfig(r=2, **targets))) == names
    for name in names:
        update = model.get_submodule(name).update
        if name.endswith("c_attn"):
            assert (update.enable_lora, update.widths) == (mask, (16, 16, 16))
        else:
            assert type(update) is lora.LoRAUpdate


def test_a_fused_projection_of_another_width_is_refused() -> None:
    model = decoder_shape("gpt2")
    model.transformer.h[1].attn.c_attn = transformers.pytorch_utils.Conv1D(24, 16)
    with pytest.raises(ConfigError, match=r"'transformer.h.1.attn.c_attn' has a weight of \(16, 24\), which does not fuse 3"):
        role_targets(model, ["query"])
    assert role_targets(model, ["output"])["target_modules"]


def test_the_order_of_the_roles_does_not_matter() -> None:
    model = decoder_shape("gpt2")
    assert role_targets(model, ["value", "mlp", "query"]) == role_targets(model, ["query", "value", "mlp"])


def test_no_model_is_known_twice() -> None:
    assert not architectures.ENCODERS.keys() & architectures.DECODERS.keys()
    assert architectures.FUSED.keys() <= architectures.DECODERS.keys()
