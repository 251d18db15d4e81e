"""Suggested hyper-parameters: the published rule, the width that it is computed from, and models that do not tell it."""

import copy
import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.architectures import RATE_EXPONENTS, RATE_FAMILIES
from models import expect_refusal, mlp, snapshot
from peers import library

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
MEASURED = [  # by the source of the rule, in a later version: model type, width, and the best of a few LoRA rates
    ("llama", 2048, 1e-3),
    ("llama", 3072, 1e-3),
    ("llama", 4096, 3e-4),
    ("llama", 8192, 3e-4),
    ("qwen3", 2560, 1e-3),
    ("qwen3", 4096, 1e-3),
    ("qwen3", 5120, 3e-4),
    ("qwen3_moe", 2048, 1e-3),
    ("qwen3_moe", 4096, 3e-4),
]


class Configured(nn.Module):
    """A model with nothing in it but a configuration."""

    def __init__(self, **values: Any):
        super().__init__()
        self.config = SimpleNamespace(**values)


def built(kind: str, cls: str = "AutoModelForCausalLM", **values: Any) -> Any:
    """A transformers model without weights, by its model type."""
    transformers = library("transformers")
    with torch.device("meta"):
        return getattr(transformers, cls).from_config(transformers.AutoConfig.for_model(kind, **values))


# --- the rule -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "width", "rate"), MEASURED)
def test_the_rule_is_near_the_rates_that_its_source_measured(kind, width, rate):
    suggested = lora.suggest(Configured(model_type=kind, hidden_size=width)).learning_rate
    assert rate / 3 < suggested < rate * 3


@pytest.mark.parametrize(("kind", "exponent"), [("llama", 0.781), ("qwen2", 0.0775), ("gpt2", (0.781 + 0.0775) / 2)])
def test_the_rate_falls_with_the_width_by_the_exponent_of_the_family(kind, exponent):
    at, above = (lora.suggest(Configured(model_type=kind, hidden_size=width)) for width in (2000, 4000))
    assert at.learning_rate == pytest.approx(5e-4)
    assert math.log2(at.learning_rate / above.learning_rate) == pytest.approx(exponent)
    for suggestion in (at, above):
        assert suggestion.full_learning_rate == pytest.approx(suggestion.learning_rate / 10)


@pytest.mark.parametrize(("kind", "said"), [("llama", "0.781 for Llama"), ("qwen3", "0.0775 for Qwen"), ("gpt2", "for a gpt2")])
def test_the_sources_say_which_exponent_was_taken(kind, said):
    (rule,) = [line for line in lora.suggest(Configured(model_type=kind, hidden_size=64)).sources if line.startswith("learn")]
    assert said in rule
    assert ("is a guess" in rule) == (kind == "gpt2")


def test_every_value_has_a_source_and_all_are_printed():
    suggestion = lora.suggest(Configured(model_type="llama", hidden_size=576))
    for field in ("target_modules", "lora_alpha", "learning_rate", "full_learning_rate"):
        assert any(field in source.partition(":")[0] for source in suggestion.sources), field
    shown = " ".join(str(suggestion).split())
    assert all(source in shown for source in suggestion.sources)
    assert "1.3e-03 (full fine-tuning: 1.3e-04)" in shown
    assert max(map(len, str(suggestion).splitlines())) <= 110


def test_the_configuration_is_what_the_suggestion_says_and_can_be_changed():
    suggestion = lora.suggest(Configured(hidden_size=64))
    assert suggestion.config() == lora.LoRAConfig(r=16, lora_alpha=32, target_modules="all-linear")
    assert dataclasses.replace(suggestion, r=4).config().r == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        suggestion.r = 8


def test_model_types_with_a_family_are_those_of_transformers():
    transformers = library("transformers")
    assert set(RATE_FAMILIES) <= set(transformers.CONFIG_MAPPING)
    assert set(RATE_FAMILIES.values()) == set(RATE_EXPONENTS)


# --- the width ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "cls", "values", "family"),
    [
        ("llama", "AutoModelForCausalLM", SMALL | {"hidden_size": 48}, "Llama"),
        ("qwen2", "AutoModelForCausalLM", SMALL | {"hidden_size": 48}, "Qwen"),
        ("gpt2", "AutoModelForCausalLM", {"n_embd": 48, "n_layer": 1, "n_head": 2, "vocab_size": 9}, None),
        ("distilbert", "AutoModel", {"dim": 48, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "vocab_size": 9}, None),
        ("t5", "AutoModel", {"d_model": 48, "num_layers": 1, "num_heads": 2, "d_ff": 8, "vocab_size": 9}, None),
        (
            "llava",
            "AutoModelForImageTextToText",
            {
                "text_config": SMALL | {"model_type": "qwen2", "hidden_size": 48},
                "vision_config": SMALL | {"model_type": "clip_vision_model", "hidden_size": 20},
            },
            "Qwen",
        ),
    ],
)
def test_the_width_and_the_family_of_transformers_models(kind, cls, values, family):
    model = built(kind, cls, **values)
    suggestion = lora.suggest(model)
    assert suggestion.hidden_size == 48
    assert any(f"for {family}." in source for source in suggestion.sources) == (family is not None)
    lora.inject(model, suggestion.config())
    assert lora.suggest(model) == lora.suggest(nn.DataParallel(model)) == suggestion


class Blocks(nn.Module):
    """An embedding of 32 and linear layers: query, key, value, up, down, and a head."""

    def __init__(self, **config: Any):
        super().__init__()
        self.few, self.embed = nn.Embedding(3, 2), nn.Embedding(50, 32)
        self.qkv = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.up, self.down, self.head = nn.Linear(32, 128), nn.Linear(128, 32), nn.Linear(32, 50)
        if config:
            self.config = config


@pytest.mark.parametrize("config", [{}, {"dropout": 0.1}, {"hidden_size": [1, 2], "d_model": True}], ids=str)
def test_without_a_stated_width_the_linear_layers_tell(config):
    assert lora.suggest(Blocks(**config)).hidden_size == 32


@pytest.mark.parametrize("name", ["hidden_size", "n_embd", "d_model", "dim"])
def test_the_config_of_any_model_is_read(name):
    assert lora.suggest(Blocks(**{name: 24})).hidden_size == 24
    assert lora.suggest(Configured(**{name: 24})).hidden_size == 24


def test_only_adapted_layers_count_where_some_are():
    model = mlp(4, 4, 4, 4, 6, 5)
    assert lora.suggest(model).hidden_size == 4
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["8"]))
    assert lora.suggest(model).hidden_size == 6


def test_embeddings_tell_where_there_is_no_linear_layer():
    assert lora.suggest(nn.ModuleList([nn.Embedding(3, 2), nn.Embedding(50, 32)])).hidden_size == 32


class Protocol(nn.Module):
    """A model that names its input embedding, or cannot."""

    def __init__(self, known: bool):
        super().__init__()
        self.embed, self.known, self.layers = nn.Embedding(9, 12), known, nn.ModuleList(nn.Linear(20, 20) for _ in range(3))

    def get_input_embeddings(self) -> nn.Module:
        if not self.known:
            raise NotImplementedError
        return self.embed


@pytest.mark.parametrize(("known", "width"), [(True, 12), (False, 20)])
def test_the_input_embedding_that_a_model_names_comes_first(known, width):
    assert lora.suggest(Protocol(known)).hidden_size == width


class Ambiguous:
    """A configuration with several text models, as transformers' are then."""

    hidden_size, model_type = 40, "several"

    def get_text_config(self) -> Any:
        raise ValueError("Multiple valid text configs were found")


def test_a_configuration_of_several_text_models_speaks_for_itself():
    model = Configured()
    model.config = Ambiguous()
    assert lora.suggest(model).hidden_size == 40


def test_a_width_that_is_passed_counts():
    assert lora.suggest(nn.Conv2d(3, 3, 1), hidden_size=64).hidden_size == 64
    assert lora.suggest(Configured(hidden_size=16), hidden_size=64).hidden_size == 64


def test_a_model_that_tells_no_width_is_refused_with_what_to_pass():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    message = r"the width of Sequential cannot be read: .*; pass it, as in lora.suggest\(model, hidden_size=768\)"
    expect_refusal(lora.ConfigError, message, model, lambda: lora.suggest(model))


@pytest.mark.parametrize("width", [0, -1, 2.5, True, "768"])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(lora.ConfigError, match=r"hidden_size=.*must be a positive integer"):
        lora.suggest(mlp(4, 3), hidden_size=width)


def test_what_is_no_model_is_refused():
    with pytest.raises(lora.ArgumentError, match="expected a model"):
        lora.suggest("gpt2")


def test_the_model_is_left_as_it_is():
    model = Blocks()
    before, bits = snapshot(model), copy.deepcopy(model.state_dict())
    lora.suggest(model)
    assert snapshot(model) == before
    assert all(torch.equal(bits[name], tensor) for name, tensor in model.state_dict().items())
