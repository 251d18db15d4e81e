"""What is trained is what is saved is what is loaded, in every mode, and as in 0.1.2 wherever 0.1.2 was right."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import loralib as lora
from loralib.surgery.trainable import is_bias, is_factor
from models import injected, mlp, same_bits, snapshot, trainable
from peers import loralib_0_1

BIASES = ["none", "lora_only", "all"]


class WithBiasTable(nn.Module):
    """Names that contain "bias" and "lora_" without being a bias or a factor."""

    def __init__(self):
        super().__init__()
        self.rel_bias_table = nn.Embedding(3, 4)
        self.explora_net = nn.Linear(4, 4)
        self.register_buffer("attn_bias", torch.ones(2))
        self.inner = nn.Module()
        self.inner.register_buffer("bias", torch.ones(2))
        self.proj = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


class Mine(nn.Linear, lora.LoRALayer):
    """A LoRA layer of your own, as 0.1 let users write them."""

    def __init__(self, d: int, k: int, r: int):
        nn.Linear.__init__(self, d, k)
        lora.LoRALayer.__init__(self, r=r, lora_alpha=1, lora_dropout=0.0, merge_weights=False)
        self.lora_gate = nn.Parameter(torch.zeros(k))


def drop_in(module) -> nn.Sequential:
    """A model of 0.1's kind: layers with LoRA, without bias, without LoRA, and plain ones."""
    return nn.Sequential(
        module.Linear(6, 5, r=2),
        nn.LayerNorm(5),
        module.Linear(5, 4, r=1, bias=False),
        nn.Linear(4, 4),
        nn.Sequential(module.Linear(4, 3, r=2), nn.Linear(3, 2, bias=False)),
    )


@pytest.mark.parametrize("bias", BIASES)
def test_drop_in_models_train_and_save_what_they_did_in_0_1(bias):
    sets = []
    for module in (lora, loralib_0_1()):
        model = drop_in(module)
        module.mark_only_lora_as_trainable(model, bias=bias)
        sets.append((trainable(model), set(module.lora_state_dict(model, bias=bias))))
    assert sets[0] == sets[1]


def test_what_was_frozen_before_is_trained_again():
    model = drop_in(lora)
    model.requires_grad_(False)
    lora.mark_only_lora_as_trainable(model)
    assert trainable(model) == {n for n, _ in model.named_parameters() if "lora_" in n}


def test_marking_again_undoes_an_earlier_mark():
    model = drop_in(lora)
    for bias in ("all", "lora_only", "none"):
        lora.mark_only_lora_as_trainable(model, bias=bias)
        assert trainable(model) == set(lora.lora_state_dict(model)) == set(lora.lora_state_dict(model, bias=bias))


def test_only_parameters_named_bias_are_biases():
    model = injected(WithBiasTable(), target_modules=["proj"], bias="all")
    lora.mark_only_lora_as_trainable(model)
    expected = {"proj.lora_A", "proj.lora_B", "proj.bias", "norm.bias", "explora_net.bias"}
    assert trainable(model) == set(lora.lora_state_dict(model)) == expected
    assert set(lora.extract(model).tensors) == {name for name in expected if not is_factor(name)}


def test_a_layer_without_an_update_is_not_a_lora_layer():
    model = nn.Sequential(lora.Linear(4, 4, r=0), lora.Linear(4, 4, r=1))
    lora.mark_only_lora_as_trainable(model, bias="lora_only")
    assert trainable(model) == set(lora.lora_state_dict(model, bias="lora_only")) == {"1.bias", "1.lora_A", "1.lora_B"}


def test_layers_of_ones_own_count():
    model = nn.Sequential(Mine(4, 3, r=2), Mine(3, 2, r=0))
    lora.mark_only_lora_as_trainable(model, bias="lora_only")
    assert trainable(model) == set(lora.lora_state_dict(model)) == {"0.lora_gate", "0.bias", "1.lora_gate"}


@pytest.mark.parametrize("model", [mlp(4, 3), nn.Sequential(lora.Linear(4, 3))])
def test_a_part_without_lora_is_frozen_with_a_warning(model):
    with pytest.warns(UserWarning, match=r"Sequential has no LoRA parameter: all of it is frozen now.*before you mark"):
        lora.mark_only_lora_as_trainable(model)
    assert not trainable(model)


def test_a_model_may_be_marked_part_by_part():
    model = nn.ModuleDict({"body": nn.Sequential(lora.Linear(4, 4, r=2)), "head": mlp(4, 2), "act": nn.ReLU()})
    lora.mark_only_lora_as_trainable(model["body"])
    lora.mark_only_lora_as_trainable(model["act"])
    with pytest.warns(UserWarning, match="has no LoRA parameter"):
        lora.mark_only_lora_as_trainable(model["head"])
    assert trainable(model) == {"body.0.lora_A", "body.0.lora_B"}
    lora.mark_only_lora_as_trainable(model["head"], bias="all")
    assert trainable(model) == {"body.0.lora_A", "body.0.lora_B", "head.0.bias"}


def test_an_unknown_mode_is_refused_unchanged():
    model = drop_in(lora)
    before = snapshot(model)
    for call in (lora.mark_only_lora_as_trainable, lora.lora_state_dict):
        with pytest.raises(lora.ConfigError, match="bias='some': must be 'none', 'lora_only' or 'all'"):
            call(model, bias="some")
    assert snapshot(model) == before


@pytest.mark.parametrize("injected_with", BIASES)
@pytest.mark.parametrize("marked_with", [None, *BIASES])
def test_the_mode_that_was_said_last_decides(injected_with, marked_with):
    model = injected(mlp(5, 4, 3), target_modules=["0"], bias=injected_with)
    lora.mark_only_lora_as_trainable(model, bias=marked_with)
    biases = {"none": set(), "lora_only": {"0.bias"}, "all": {"0.bias", "2.bias"}}[marked_with or injected_with]
    assert trainable(model) == set(lora.lora_state_dict(model)) == {"0.lora_A", "0.lora_B"} | biases
    assert set(lora.extract(model).tensors) == biases
    other = mlp(5, 4, 3)
    lora.attach(other, lora.extract(model))
    assert set(lora.lora_state_dict(other)) == set(lora.lora_state_dict(model))


def test_lora_state_dict_shares_memory_and_loads_back():
    model = drop_in(lora)
    state = lora.lora_state_dict(model, bias="all")
    with torch.no_grad():
        model[0].lora_A.fill_(3)
    assert (state["0.lora_A"] == 3).all()
    assert not drop_in(lora).load_state_dict(state, strict=False).unexpected_keys


def test_lora_state_dict_is_the_same_for_a_merged_model():
    model = drop_in(lora)
    before = lora.lora_state_dict(model, bias="all")
    after = lora.lora_state_dict(model.eval(), bias="all")
    assert list(before) == list(after)
    assert all(same_bits(before[name], after[name]) for name in before)


@st.composite
def configured_models(draw):
    """A small random model and a configuration that fits it."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=3, max_size=6))
    model = nn.Sequential()
    for i, (d, k) in enumerate(pairwise(sizes)):
        block = nn.ModuleDict({"proj": nn.Linear(d, k, bias=draw(st.booleans())), "norm": nn.BatchNorm1d(k)})
        model.add_module(f"block{i}", block)
    blocks = [name for name, _ in model.named_children()]
    target = draw(st.lists(st.sampled_from(blocks), min_size=1, unique=True))
    saved = draw(st.lists(st.sampled_from(blocks), max_size=2, unique=True))
    saved = [f"{name}.norm" if name in target else draw(st.sampled_from([name, f"{name}.norm"])) for name in saved]
    config = lora.LoRAConfig(
        r=draw(st.integers(1, 3)),
        target_modules=[f"{name}.proj" for name in target],
        modules_to_save=saved,
        bias=draw(st.sampled_from(BIASES)),
    )
    return model, config


@pytest.mark.filterwarnings("ignore:.*larger than both sides")
@given(configured_models())
def test_what_is_trained_is_what_is_saved_is_what_is_extracted_is_what_is_loaded(drawn):
    model, config = drawn
    base = copy.deepcopy(model)
    lora.inject(model, config)
    lora.mark_only_lora_as_trainable(model)
    adapter, state = lora.extract(model), lora.lora_state_dict(model)
    factors = {f"{name}.lora_{key}" for name in adapter.layers for key in "AB"}
    assert set(state) == factors | set(adapter.tensors)
    buffers = {name for name, _ in model.named_buffers()}
    assert trainable(model) == set(state) - buffers
    assert all(any(name.startswith(m + ".") for m in config.modules_to_save) for name in set(state) & buffers)
    lora.attach(base, adapter)
    assert set(lora.lora_state_dict(base)) == set(state)
    assert set(lora.extract(base).tensors) == set(adapter.tensors)
    lora.mark_only_lora_as_trainable(base)
    assert trainable(base) == trainable(model)


def test_names_of_factors_start_with_lora():
    assert is_factor("0.lora_A")
    assert not is_factor("explora_net.weight")
    assert is_bias("bias")
    assert not is_bias("0.bias_table.weight")


class Gated(lora.Linear):
    """A layer of ours with one more parameter of its own for the adapter, and one with such a name that is not."""

    def __init__(self, d: int, k: int, r: int):
        super().__init__(d, k, r=r)
        self.gate = nn.Parameter(torch.zeros(k))
        self.lora_base = nn.Parameter(torch.zeros(k))

    def adapter_parameters(self):
        return super().adapter_parameters() | {"gate": self.gate}


def test_a_layer_of_ours_says_itself_which_parameters_are_the_adapters():
    model = nn.Sequential(Gated(4, 3, r=2), nn.Linear(3, 2))
    assert list(lora.Linear(2, 2, r=1).adapter_parameters()) == ["lora_A", "lora_B"]
    assert lora.Linear(2, 2).adapter_parameters() == {}
    lora.mark_only_lora_as_trainable(model)
    assert trainable(model) == set(lora.lora_state_dict(model)) == {"0.lora_A", "0.lora_B", "0.gate"}


# --- whose a tensor is: not what a module is called -------------------------------------------------------------------


class WithHead(nn.Module):
    """A model whose modules have names like LoRA's."""

    def __init__(self):
        super().__init__()
        self.body, self.lora_head = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))

    def forward(self, x):
        return self.lora_head(self.body(x))


def test_a_module_is_trained_when_it_is_asked_for_whatever_it_is_called():
    model = injected(WithHead(), target_modules=["body", "lora_head.0"])
    lora.mark_only_lora_as_trainable(model)
    factors = {f"{layer}.lora_{key}" for layer in ("body", "lora_head.0") for key in "AB"}
    assert trainable(model) == set(lora.lora_state_dict(model)) == factors


def test_what_is_asked_for_is_extracted_whatever_it_is_called():
    plain, x = WithHead().eval(), torch.randn(3, 4)
    model = injected(copy.deepcopy(plain), target_modules=["body"], modules_to_save=["lora_head"])
    lora.mark_only_lora_as_trainable(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad * 0.5)
    state = {name for name in model.state_dict() if name.startswith("lora_head.")}
    assert set(lora.extract(model).tensors) == state
    assert set(lora.lora_state_dict(model)) == state | {"body.lora_A", "body.lora_B"}
    lora.attach(plain, lora.extract(model))
    assert same_bits(plain(x), model(x))


def test_of_a_model_of_layers_built_by_hand_the_modules_that_0_1_would_have_trained_are_named():
    model = nn.ModuleDict({"layer": lora.Linear(4, 4, r=2), "lora_head": nn.Linear(4, 2)})
    with pytest.warns(UserWarning, match=r"'lora_head.weight' is frozen, with 1 others like it.*from LoRALayer"):
        lora.mark_only_lora_as_trainable(model)
    assert trainable(model) == {"layer.lora_A", "layer.lora_B"}


class Bottleneck(nn.Module, lora.LoRALayer):
    """A layer of 0.1's kind whose factors are layers, next to parameters that are not its own."""

    def __init__(self):
        nn.Module.__init__(self)
        lora.LoRALayer.__init__(self, r=2, lora_alpha=1, lora_dropout=0.0, merge_weights=False)
        self.base, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(3))
        self.lora_parts = nn.ModuleDict({"down": nn.Linear(4, 2, bias=False), "up": nn.Linear(2, 3, bias=False)})
        self.bias = nn.Parameter(torch.zeros(3))


class Renamed(lora.Linear):
    """One of 0.1's layers with factors of other names."""

    def __init__(self):
        super().__init__(4, 3, r=0)
        self.lora_down, self.lora_up = nn.Parameter(torch.zeros(2, 4)), nn.Parameter(torch.zeros(3, 2))


@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_inside_a_layer_of_0_1s_kind_names_say_what_is_trained_as_in_0_1(bias):
    model = nn.ModuleDict({"bottleneck": Bottleneck(), "renamed": Renamed(), "plain": nn.Linear(3, 3)})
    lora.mark_only_lora_as_trainable(model, bias=bias)
    expected = {"bottleneck.lora_parts.down.weight", "bottleneck.lora_parts.up.weight"}
    expected |= {"renamed.lora_down", "renamed.lora_up"}
    expected |= {"bottleneck.bias", "renamed.bias"} if bias == "lora_only" else set()
    assert trainable(model) == set(lora.lora_state_dict(model)) == set(lora.lora_state_dict(model, bias=bias)) == expected
    assert expected == {  # 0.1's rule
        name
        for name, _ in model.named_parameters()
        if "lora_" in name or (bias != "none" and name in ("bottleneck.bias", "renamed.bias"))
    }


class Foreign(nn.Module):
    """Somebody else's LoRA layer, which is none of 0.1's: its factors are Parameters, or layers."""

    def __init__(self, factor):
        super().__init__()
        self.weight, self.lora_A = nn.Parameter(torch.zeros(3, 4)), factor


def test_a_parameter_called_so_is_trained_in_any_module_as_in_0_1_and_a_module_is_not():
    model = nn.Sequential(Foreign(nn.Parameter(torch.zeros(2, 4))), lora.Linear(4, 4, r=1))
    lora.mark_only_lora_as_trainable(model)
    assert trainable(model) == set(lora.lora_state_dict(model)) == {"0.lora_A", "1.lora_A", "1.lora_B"}
    other = injected(nn.Sequential(Foreign(nn.Linear(4, 2)), nn.Linear(4, 4)), target_modules=["1"])
    lora.mark_only_lora_as_trainable(other)
    assert trainable(other) == set(lora.lora_state_dict(other)) == {"1.lora_A", "1.lora_B"}


@pytest.mark.parametrize(
    "other",
    [Foreign(nn.Parameter(torch.zeros(2, 4))), Gated(4, 3, r=2), Bottleneck(), Renamed()],
    ids=lambda m: type(m).__name__,
)
def test_extract_refuses_a_layer_whose_factors_it_cannot_hold(other):
    model = injected(nn.Sequential(other, nn.Linear(4, 4)), target_modules=["1"])
    with pytest.raises(lora.LayerError, match=r"'0' is a .*, whose update only it knows; use lora_state_dict"):
        lora.extract(model)


# --- biases of several injections -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", BIASES)
@pytest.mark.parametrize("second", BIASES)
def test_each_injection_trains_the_biases_that_it_names_and_no_others(first, second):
    model, x = mlp(5, 5, 5), torch.randn(2, 5)
    plain = copy.deepcopy(model)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"], bias=first))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["2"], bias=second))
    lora.mark_only_lora_as_trainable(model)
    named = {"none": set(), "lora_only": {"0.bias"}, "all": {"0.bias", "2.bias"}}[first]
    named |= {"none": set(), "lora_only": {"2.bias"}, "all": {"0.bias", "2.bias"}}[second]
    assert {name for name in trainable(model) if "lora_" not in name} == named
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad * 0.5)
    assert set(lora.extract(model).tensors) == named
    with lora.disabled(model):
        assert same_bits(model(x), plain(x))
    fresh = copy.deepcopy(plain)
    lora.attach(fresh, lora.extract(model))
    assert same_bits(fresh(x), model(x))
    lora.mark_only_lora_as_trainable(fresh)
    assert trainable(fresh) == trainable(model)
    lora.eject(model)
    assert same_bits(model(x), plain(x))
