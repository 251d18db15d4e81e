"""The configuration: a frozen value that cannot be made wrong."""

import copy
import dataclasses
import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loralib as lora
from loralib.config import lora_scaling
from peers import library

FULL = lora.LoRAConfig(
    r=4,
    lora_alpha=16,
    lora_dropout=0.1,
    target_modules=["query", "value"],
    exclude_modules=r".*\.0\..*",
    modules_to_save=["classifier"],
    bias="lora_only",
    rank_pattern={"query": 8},
    alpha_pattern={"value": 32.0},
    use_rslora=True,
)

CONFIGS = st.builds(
    lora.LoRAConfig,
    r=st.integers(1, 64),
    lora_alpha=st.one_of(st.integers(1, 64), st.floats(0.1, 100)),
    lora_dropout=st.floats(0, 0.99),
    target_modules=st.one_of(st.just("all-linear"), st.lists(st.sampled_from(["a", "b.c", "0"]), unique=True)),
    bias=st.sampled_from(["none", "lora_only", "all"]),
    rank_pattern=st.dictionaries(st.sampled_from(["a", "b"]), st.integers(1, 9)),
    use_rslora=st.booleans(),
)


@given(CONFIGS)
def test_a_configuration_survives_json_copies_and_pickle(config):
    assert lora.LoRAConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert copy.copy(config) == copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert config.scaling == lora_scaling(config.r, config.lora_alpha, config.use_rslora)


def test_equal_words_are_equal_configurations():
    assert lora.LoRAConfig(**FULL.to_dict()) == FULL
    assert dataclasses.replace(FULL, r=5) != FULL
    assert dataclasses.replace(FULL, r=5).rank_pattern == FULL.rank_pattern
    assert lora.LoRAConfig(target_modules=("a", "b")) == lora.LoRAConfig(target_modules=["a", "b"])


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        FULL.r = 2
    with pytest.raises(TypeError):
        FULL.rank_pattern["query"] = 2
    names = ["query"]
    config = lora.LoRAConfig(target_modules=names)
    names.append("value")
    assert config.target_modules == ("query",)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("r", 0, "r=0: the rank must be a positive integer"),
        ("r", -2, "r=-2"),
        ("r", 2.0, "r=2.0"),
        ("r", True, "r=True"),
        ("r", "8", "r='8'"),
        ("lora_alpha", 0, "lora_alpha=0: must be a positive number"),
        ("lora_alpha", math.inf, "lora_alpha=inf"),
        ("lora_alpha", math.nan, "lora_alpha=nan"),
        ("lora_alpha", None, "lora_alpha=None"),
        ("lora_dropout", 1, r"lora_dropout=1: must be a probability in \[0, 1\)"),
        ("lora_dropout", -0.1, "lora_dropout=-0.1"),
        ("bias", "some", "bias='some': must be 'none', 'lora_only' or 'all'"),
        ("bias", {}, "bias={}"),
        ("use_rslora", 1, "use_rslora=1: must be True or False"),
        ("target_modules", ["a", 1], r"target_modules=\['a', 1\]: must be a list of names"),
        ("target_modules", [""], r"target_modules=\[''\]: must be a list of names"),
        ("target_modules", 5, "target_modules=5: must be a list of names"),
        ("exclude_modules", {"a": 1}, "exclude_modules=.*: must be a list of names"),
        ("modules_to_save", "classifier", "modules_to_save='classifier': must be a list of names"),
        ("modules_to_save", 7, "modules_to_save=7: must be a list of names"),
        ("rank_pattern", {"q": 0}, "r=0"),
        ("rank_pattern", ["q"], r"rank_pattern=\['q'\]: must be a dictionary"),
        ("rank_pattern", {"(q": 4}, r"rank_pattern: '\(q' is neither a name nor a regular expression"),
        ("rank_pattern", {1: 4}, "rank_pattern: 1 is neither a name"),
        ("alpha_pattern", {"q": "x"}, "lora_alpha='x'"),
        ("alpha_pattern", None, "alpha_pattern=None: must be a dictionary"),
    ],
)
def test_values_that_cannot_work_are_refused_in_words(field, value, message):
    with pytest.raises(lora.ConfigError, match=message) as caught:
        lora.LoRAConfig(**{field: value})
    assert isinstance(caught.value, (lora.LoRAError, ValueError))


def test_unknown_words_are_refused():
    with pytest.raises(TypeError, match="lora_aplha"):
        lora.LoRAConfig(lora_aplha=2)


def test_the_words_mean_what_they_mean_in_peft():
    theirs = {field.name: field for field in dataclasses.fields(library("peft").LoraConfig)}
    ours = {field.name for field in dataclasses.fields(lora.LoRAConfig)}
    merged_linear = {"enable_lora", "slice_widths"}  # 0.1's MergedLinear, which PEFT dropped
    experts = {"share_expert_factor", "divide_expert_rank"}
    assert ours - theirs.keys() == merged_linear | experts
    values = {name: value for name, value in FULL.to_dict().items() if name not in merged_linear | experts}
    config = library("peft").LoraConfig(**values)
    assert all(getattr(config, name) == (set(v) if name == "target_modules" else v) for name, v in values.items())
    for name in ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora"):
        assert getattr(lora.LoRAConfig(), name) == theirs[name].default
