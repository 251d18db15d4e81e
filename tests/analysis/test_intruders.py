"""Intruder dimensions: found where one was put, reduced by what was asked, and nothing else."""

import copy

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.adapters.config_of import described
from models import close
from peers import library


def of(update: lora.LoRAUpdate, name: str = "0") -> lora.Adapter:
    return lora.Adapter(described(lora.LoRAConfig(), {name: update}), {name: update})


def base_with(W: torch.Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(W.shape[1], W.shape[0], bias=False))
    model[0].weight.data = W
    return model


def graded(k: int = 40, d: int = 30) -> torch.Tensor:
    """A weight whose singular values decrease from 5 to 1."""
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, n))[0][:, : min(k, d)] for n in (k, d))
    return U * torch.linspace(5, 1, min(k, d)) @ V.t()


def test_a_direction_that_the_weight_has_is_no_intruder():
    W = graded()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    update = lora.LoRAUpdate(Vh[:1], 3 * S[0] * U[:, :1], lora_alpha=1)
    assert lora.intruder_dimensions(of(update), base_with(W)) == {"0": ()}


def test_a_direction_that_it_has_not_is_one():
    W = graded()
    U = torch.linalg.svd(W)[0]
    new = U[:, 35:36]  # orthogonal to all that W reaches
    update = lora.LoRAUpdate(torch.randn(1, 30), new, lora_alpha=20)
    [found] = lora.intruder_dimensions(of(update), base_with(W))["0"]
    assert found.index == 0
    assert found.similarity < 0.2
    assert not lora.intruder_dimensions(of(update), base_with(W), epsilon=0.0)["0"]


def test_reducing_scales_the_intruders_and_nothing_else():
    W = graded()
    torch.manual_seed(1)
    update = lora.LoRAUpdate(torch.randn(3, 30), torch.randn(40, 3), lora_alpha=9)
    adapter = of(update)
    before = torch.linalg.svd(W + update.delta(), full_matrices=False)
    intruders = lora.intruder_dimensions(adapter, base_with(W))["0"]
    assert intruders
    reduced = lora.reduce_intruder_dimensions(adapter, base_with(W), keep=0.25)
    S = before.S.clone()
    for intruder in intruders:
        assert abs(intruder.singular_value - float(S[intruder.index])) < 1e-4
        S[intruder.index] *= 0.25
    assert close(W + reduced.delta("0"), before.U * S @ before.Vh, factor=64)
    assert reduced.layers["0"].r == 3 + len(intruders)
    assert lora.reduce_intruder_dimensions(adapter, base_with(W), keep=0.25, r=3).layers["0"].r == 3


def test_nothing_to_reduce_leaves_the_adapter_itself():
    W = graded()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    adapter = of(lora.LoRAUpdate(Vh[:1], S[0] * U[:, :1], lora_alpha=1))
    assert lora.reduce_intruder_dimensions(adapter, base_with(W)) is adapter


def test_peft_reduces_to_the_same_update():
    peft = library("peft")
    reduce = library("peft.tuners.lora.intruders").reduce_intruder_dimension
    W = graded()
    base = base_with(W)
    wrapped = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=3, lora_alpha=9, target_modules=["0"]))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape))
    layer = wrapped.base_model.model[0]
    update = lora.LoRAUpdate(
        layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone(), 9
    )
    reduce(wrapped, top_k=10, threshold_epsilon=0.5, mitigation_lambda=0.75, logging_sink=None)
    theirs = layer.get_delta_weight("intruder_reduced").detach()
    ours = lora.reduce_intruder_dimensions(of(update), base, keep=0.75, r=3)
    assert not close(ours.delta("0"), update.delta(), factor=1e3)
    assert close(ours.delta("0"), theirs, factor=256)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_folders_give_what_models_give(family, tmp_path):
    t = library("transformers")
    torch.manual_seed(0)
    if family == "gpt2":
        sizes = {
            "n_layer": 1,
            "n_head": 1,
            "n_embd": 16,
            "vocab_size": 17,
            "n_positions": 8,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        model, targets = t.GPT2LMHeadModel(t.GPT2Config(**sizes)), ["c_attn", "c_proj", "wte"]
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 17}
        model, targets = t.LlamaForCausalLM(t.LlamaConfig(**sizes)), ["q_proj", "down_proj"]
    model.save_pretrained(tmp_path / "base")
    adapted = copy.deepcopy(model)
    if family == "gpt2":
        adapted.lm_head.weight = nn.Parameter(adapted.lm_head.weight.detach().clone())
    lora.inject(adapted, lora.LoRAConfig(r=2, lora_alpha=8, target_modules=targets))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape))
    adapter = lora.extract(adapted)
    of_model, of_files = (lora.intruder_dimensions(adapter, source) for source in (model, tmp_path / "base"))
    assert of_model == of_files
    assert any(of_model.values())


def test_arguments_that_cannot_be_are_refused():
    W = graded()
    update = lora.LoRAUpdate(torch.randn(1, 30), torch.randn(40, 1), 1)
    for options, telling in (({"top_k": 0}, "top_k=0"), ({"epsilon": 2}, "epsilon=2")):
        with pytest.raises(lora.ConfigError, match=telling):
            lora.intruder_dimensions(of(update), base_with(W), **options)
    with pytest.raises(lora.ConfigError, match="keep=nan"):
        lora.reduce_intruder_dimensions(of(update), base_with(W), keep=float("nan"))
    with pytest.raises(lora.LayerError, match="no layer 'x'"):
        lora.intruder_dimensions(of(update, "x"), base_with(W))
    with pytest.raises(lora.LayerError, match="does not fit"):
        lora.intruder_dimensions(of(update), base_with(W.t().contiguous()))
    dora = lora.LoRAUpdate(update.A, update.B, 1, magnitude=torch.ones(40))
    with pytest.raises(lora.AlgebraError, match="DoRA"):
        lora.intruder_dimensions(of(dora), base_with(W))
