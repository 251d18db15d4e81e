"""What inject and attach return: the names, how many parameters they are, and why everything else has no update."""

import copy
import pickle

import pytest
import torch
from torch import nn

import loralib as lora
from hf import tiny
from loralib.surgery.bound import Bound
from mixtures import mixture
from models import Encoder, injected, mlp
from peers import library

CONFIG = lora.LoRAConfig(r=2)


class Experts(nn.Module):
    """The weights of several experts in one Parameter each, as in mixtures of experts."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.zeros(3, 4, 8)), nn.Parameter(torch.zeros(3, 8, 4))


class Own(nn.MultiheadAttention):
    def forward(self, x):
        return x @ self.in_proj_weight


def mixed() -> nn.Module:
    """Modules of every kind that "all-linear" can leave out, and two layers that it adapts."""
    parts = {
        "body": nn.Linear(4, 4),
        "attention": nn.MultiheadAttention(4, 2),
        "own_attention": Own(4, 2),
        "table": nn.Embedding(3, 4),
        "convolution": nn.Conv1d(4, 4, 3),
        "rnn": nn.LSTM(4, 4),
        "experts": Experts(),
        "norm": nn.LayerNorm(4),
        "head": nn.Linear(4, 2),
        "skipped": nn.Linear(4, 4),
    }
    return nn.ModuleDict(parts)


def test_every_matrix_without_an_update_is_in_a_module_that_is_left_out_with_a_reason():
    model = mixed()
    model.position = nn.Parameter(torch.zeros(5, 4))
    bound = lora.inject(model, lora.LoRAConfig(r=2, modules_to_save=["head"], exclude_modules=["skipped"]))
    assert bound == ["body", *(f"attention.{p}_proj" for p in "qkv"), "attention.out_proj"]
    assert bound.left_out == {
        "own_attention": "MultiheadAttention layers cannot be adapted".replace("Multihead", "Own").replace(
            "OwnAttention", "Own"
        ),
        "own_attention.out_proj": bound.left_out["own_attention.out_proj"],
        "table": "Embedding layers are adapted when target_modules names them",
        "convolution": "Conv1d layers are adapted when target_modules names them",
        "rnn": "LSTM layers cannot be adapted",
        "experts.gate_up_proj": "Experts holds it as a 3-D Parameter, which target_parameters can name",
        "experts.down_proj": "Experts holds it as a 3-D Parameter, which target_parameters can name",
        "head": "it is in modules_to_save",
        "skipped": "it is in exclude_modules",
        "position": "ModuleDict layers cannot be adapted",
    }
    covered = (*bound, "attention", *bound.left_out)
    for name, parameter in model.named_parameters():
        assert parameter.dim() < 2 or any(name == part or name.startswith(part + ".") for part in covered), name


def test_what_models_keep_in_parameters_of_their_own_is_said_to_be_left_out():
    cls = library("transformers").XLNetModel
    model = cls(cls.config_class(d_model=8, n_layer=1, n_head=2, d_inner=8, vocab_size=20))
    left_out = lora.inject(model, CONFIG).left_out
    assert {f"layer.0.rel_attn.{name}" for name in "qkvor"} <= left_out.keys()
    assert all("3-D Parameter" in reason for name, reason in left_out.items() if ".rel_attn." in name)


def test_the_experts_of_a_mixture_are_counted_and_said():
    model = mixture("Qwen3Moe")
    bound = lora.inject(model, CONFIG)
    assert (len(bound), bound.experts) == (12, 4)
    assert bound.summary().startswith("LoRA on 12 layers, 4 of them weights of experts (")
    assert lora.attach(mixture("Qwen3Moe"), lora.extract(model)).experts == 4


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_the_quantized_half_of_a_model_is_said_to_be_left_out():
    quantized = torch.ao.nn.quantized.dynamic.Linear(4, 4)
    bound = lora.inject(nn.ModuleDict({"plain": nn.Linear(4, 4), "quantized": quantized}), CONFIG)
    assert bound == ["plain"]
    assert bound.left_out == {"quantized": "torch.ao.nn.quantized.dynamic.modules.linear.Linear layers cannot be adapted"}


def test_nothing_is_left_out_of_what_was_asked_for_by_name():
    bound = lora.inject(mixed(), lora.LoRAConfig(r=2, target_modules=["body", "skipped"]))
    assert (bound, bound.left_out) == (["body", "skipped"], {})
    bound = lora.inject(mixed(), lora.LoRAConfig(r=2, target_modules=["body", "skipped"], exclude_modules=["body"]))
    assert bound.left_out == {"body": "it is in exclude_modules"}


@pytest.mark.parametrize("make", [Encoder, lambda: mlp(6, 5, 4), lambda: tiny("Bert")])
def test_the_parameters_are_those_of_the_factors(make):
    model = make()
    total = sum(p.numel() for p in model.parameters())
    bound = lora.inject(model, CONFIG)
    assert bound.parameters == sum(p.numel() for p in model.parameters()) - total
    again = make()
    attached = lora.attach(again, lora.extract(model))
    assert (attached, attached.parameters, attached.left_out) == (bound, bound.parameters, {})
    assert lora.attach(again, lora.extract(model)).parameters == bound.parameters


def test_it_is_a_list_that_can_be_copied_and_sent():
    bound = lora.inject(mixed(), CONFIG)
    assert isinstance(bound, list)
    assert bound == list(bound)
    for other in (copy.copy(bound), copy.deepcopy(bound), pickle.loads(pickle.dumps(bound))):
        assert type(other) is Bound
        assert (other, other.parameters, other.left_out) == (bound, bound.parameters, bound.left_out)


def test_a_second_injection_names_what_the_first_did_not_adapt():
    model = injected(mixed(), target_modules=["table", "body"])
    bound = lora.inject(model, lora.LoRAConfig(r=2, exclude_modules=["body"]))
    assert "table" not in bound.left_out
    assert "convolution" in bound.left_out


def test_one_line_says_it_all():
    bound = lora.inject(mixed(), lora.LoRAConfig(r=2, exclude_modules=["head"]))
    said = bound.summary()
    assert said.startswith(f"LoRA on {len(bound)} layers ({bound.parameters:,} parameters); left out: ")
    assert all(reason in said for reason in bound.left_out.values())
