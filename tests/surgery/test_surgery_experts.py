"""Experts of a model as targets, and adapters whose experts are kept otherwise than the model's."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.surgery.experts import as_in_model
from loralib.surgery.survey import Survey
from loralib.surgery.wrappers import child_of, name_of, plain_name
from mixtures import FAMILIES, Experts, fill, logits, mixture
from models import expect_refusal, trainable

WHERE = ["experts.gate_up_proj", "experts.down_proj"]


def targets(**config: Any) -> lora.LoRAConfig:
    return lora.LoRAConfig(**{"r": 2, "lora_alpha": 3, "target_modules": [], "target_parameters": WHERE} | config)


# --- which are targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_finds_the_experts_and_not_the_router(family: str) -> None:
    found = lora.inject(mixture(family), lora.LoRAConfig(r=2))
    experts = [name for name in found if name.endswith(tuple(f".{where}" for where in WHERE))]
    assert len(experts) == (2 if family == "DeepseekV3" else 4)
    assert not any(name.endswith(("gate", "router")) for name in found)
    assert not any("experts" in name and "shared" not in name for name in found.left_out)


def test_what_is_named_is_adapted_and_nothing_else() -> None:
    model = mixture("Qwen3Moe")
    names = [f"model.layers.{i}.mlp.experts.{leaf}" for i in (0, 1) for leaf in ("gate_up_proj", "down_proj")]
    assert lora.inject(model, targets()) == names
    lora.mark_only_lora_as_trainable(model)
    assert trainable(model) == {f"{n.replace('experts.', 'experts.lora_')}.lora_{x}" for n in names for x in "AB"}
    lora.eject(model)
    assert lora.inject(model, targets(target_parameters=["0.mlp.experts.down_proj"])) == names[1:2]
    lora.eject(model)
    both = lora.inject(model, targets(target_modules=["q_proj"], exclude_modules=["1.mlp.experts", "0.self_attn.q_proj"]))
    assert both == [*names[:2], "model.layers.1.self_attn.q_proj"]


def test_the_configuration_of_what_is_there_makes_the_same_layers() -> None:
    model = mixture("GptOss")
    config = targets(target_modules=["q_proj"], rank_pattern={"down_proj": 3}, share_expert_factor="B", use_rslora=True)
    lora.inject(model, config)
    adapter = lora.extract(model)
    other = mixture("GptOss")
    assert lora.inject(other, adapter.config) == list(adapter.layers)
    for name, update in lora.extract(other).layers.items():
        assert update.form() == adapter.layers[name].form()


@pytest.mark.parametrize(
    ("r", "family", "expected"), [(8, "Qwen3Moe", 4), (5, "Mixtral", 2), (1, "Olmoe", 1), (4, "Llama4", 4)]
)
def test_the_rank_of_experts_is_divided_on_request(r: int, family: str, expected: int) -> None:
    model = mixture(family)
    lora.inject(model, lora.LoRAConfig(r=r, divide_expert_rank=True, rank_pattern={"0.*experts.down_proj": 3}))
    ranks = {name: update.r for name, update in lora.extract(model).layers.items()}
    assert {rank for name, rank in ranks.items() if name.endswith("experts.gate_up_proj")} == {expected}
    assert {rank for name, rank in ranks.items() if name.endswith("0.mlp.experts.down_proj")} <= {3}
    assert {rank for name, rank in ranks.items() if not name.endswith(tuple(WHERE))} == {r}


def test_a_configuration_of_pefts_means_the_same_here() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=[], target_parameters=WHERE)
    model, same = mixture("Qwen3Moe"), mixture("Qwen3Moe")
    assert lora.inject(model, config) == lora.inject(same, targets())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target_parameters": ["experts.nothing"]}, "target_parameters: no .* 'experts.nothing'|target_parameters.*nothing"),
        ({"target_parameters": ["q_proj.weight"]}, "has 2 dimensions, .* name its layer in target_modules: .*q_proj"),
        ({"target_parameters": ["input_layernorm.weight"]}, "has 1 dimensions"),
        ({"rank_pattern": {"experts.up_proj": 3}}, "rank_pattern.*experts.up_proj"),
        ({"target_parameters": []}, r"target_modules=\[\] names no layer"),
        ({"target_modules": ["down_proj"]}, "target_modules"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"exclude_modules": ["experts"]}, "leaves no layer"),
    ],
)
def test_what_cannot_be_a_target_is_refused(config: dict[str, Any], message: str) -> None:
    model = mixture("Qwen3Moe")
    expect_refusal(lora.TargetError, message, model, lambda: lora.inject(model, targets(**config)))


def test_a_named_parameter_is_not_said_to_be_left_out() -> None:
    model = nn.ModuleDict({"experts": Experts()})
    found = lora.inject(model, lora.LoRAConfig(target_parameters=["experts.w1"]))
    assert found == ["experts.w1"]
    assert found.left_out == {}
    with pytest.raises(lora.TargetError, match="no linear layer"):
        lora.inject(nn.ModuleDict({"experts": Experts()}), lora.LoRAConfig())


def test_an_adapted_weight_is_refused() -> None:
    model = mixture("Qwen3Moe")
    lora.inject(model, targets())
    expect_refusal(lora.TargetError, "it is a LoRA layer already", model, lambda: lora.inject(model, targets()))


def test_a_rank_that_nothing_divides_is_refused() -> None:
    model = nn.ModuleDict({"experts": Experts()})
    config = targets(target_parameters=["experts.w1"], divide_expert_rank=True)
    expect_refusal(lora.TargetError, "does not say how many experts", model, lambda: lora.inject(model, config))


# --- names ----------------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_parameters_whatever_the_children_are_called() -> None:
    model = mixture("Qwen3Moe")
    lora.inject(model, targets())
    name = "model.layers.1.mlp.experts"
    owner = model.get_submodule(name)
    layer = child_of(owner, "down_proj")
    assert layer is owner.get_submodule("lora_down_proj")
    assert name_of("lora_down_proj", layer) == "down_proj"
    assert plain_name(model, f"{name}.lora_down_proj.lora_A") == f"{name}.down_proj.lora_A"
    assert f"{name}.lora_down_proj.lora_A" in lora.lora_state_dict(model)
    read = Survey(model)
    assert read.adapted[f"{name}.down_proj"] is layer
    assert read.sites[f"{name}.down_proj"] is layer


def test_a_state_dict_loads_into_another_model() -> None:
    model, other = mixture("Qwen3Moe"), mixture("Qwen3Moe")
    for each in (model, other):
        lora.inject(each, targets())
    state = lora.lora_state_dict(fill(model))
    assert not torch.equal(logits(other), logits(model))
    assert other.load_state_dict(state, strict=False).unexpected_keys == []
    assert torch.equal(logits(other), logits(model))


# --- adapters in another form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "Llama4"])
@pytest.mark.parametrize("old", [False, True])
def test_updates_of_each_expert_are_put_together(family: str, old: bool) -> None:
    model = mixture(family)
    lora.inject(model, targets())
    together = lora.extract(fill(model))
    apart = lora.split_experts(together, interleaved=family == "GptOss")
    if old:  # Mixtral of transformers 4
        names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
        apart = apart.rename(lambda n: n.replace("mlp", "block_sparse_moe").replace(n.split(".")[-1], names[n.split(".")[-1]]))
    other = mixture(family)
    lora.attach(other, apart)
    torch.testing.assert_close(logits(other), logits(model), atol=1e-5, rtol=0)


class Apart(nn.Module):
    """A mixture whose experts are layers, as older models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.ModuleDict({"gate_proj": nn.Linear(6, 5), "up_proj": nn.Linear(6, 5), "down_proj": nn.Linear(5, 6)})
            for _ in range(3)
        )


def test_updates_of_all_experts_are_taken_apart() -> None:
    model = Apart()
    lora.inject(model, lora.LoRAConfig(r=2))
    apart = lora.extract(fill(model))
    other = Apart()
    lora.attach(other, lora.stack_experts(apart))
    found = lora.extract(other)
    assert found.layers.keys() == apart.layers.keys()
    for name, update in apart.layers.items():
        torch.testing.assert_close(found.delta(name), update.delta())


def test_what_the_model_has_is_left_alone() -> None:
    model = Apart()
    lora.inject(model, lora.LoRAConfig(r=2))
    adapter = lora.extract(model)
    assert as_in_model(Survey(Apart()), adapter) is adapter


def test_what_does_not_fit_is_refused_with_its_names() -> None:
    model = mixture("Qwen3Moe")
    lora.inject(model, targets())
    adapter = lora.extract(model)
    other = mixture("Qwen3Moe", num_experts=3)
    expect_refusal(lora.AttachError, "experts.gate_up_proj: .*in the adapter", other, lambda: lora.attach(other, adapter))
    plain = nn.Sequential(nn.Linear(4, 4))
    expect_refusal(lora.AttachError, "no such layer in the model", plain, lambda: lora.attach(plain, adapter))


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_files_gives_the_bits_of_merging_the_model(family: str, tmp_path: Any) -> None:
    from safetensors.torch import load_file

    model = mixture(family)
    model.save_pretrained(tmp_path / "base")
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3))
    adapter = lora.extract(fill(model))
    lora.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "merged")
    lora.merge(model, keep=False)
    model.save_pretrained(tmp_path / "expected")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss"])
def test_the_difference_of_two_mixtures_is_an_update_of_their_experts(family: str) -> None:
    base = mixture(family)
    model = copy.deepcopy(base)
    lora.inject(model, targets())
    adapter = lora.extract(fill(model))
    lora.merge(model, keep=False)
    found = lora.difference(model, base, r=2)
    assert found.layers.keys() == adapter.layers.keys()
    for name, update in adapter.layers.items():
        torch.testing.assert_close(found.delta(name), update.delta(), atol=1e-5, rtol=1e-4)
