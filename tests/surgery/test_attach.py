"""Adapters out of models and onto them: nothing is lost on the way, and nothing is changed when something does not fit."""

import copy

import pytest
import torch
import torch.distributed
from torch import nn

import loralib as lora
from kinds import fill
from loralib.surgery.survey import Survey
from loralib.surgery.trainable import trained_names
from models import (
    Encoder,
    Tied,
    bits,
    close,
    expect_refusal,
    injected,
    mlp,
    same_bits,
    trained_head,
)

CONFIG = lora.LoRAConfig(r=2, lora_alpha=3)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": ["proj"], "rank_pattern": {"^proj": 3}, "alpha_pattern": {"^proj": 5}},
        {"target_modules": ["query"], "bias": "lora_only", "modules_to_save": ["norm"]},
        {"target_modules": ["query"], "bias": "all", "use_rslora": True},
    ],
)
def test_what_was_extracted_gives_another_copy_the_same_output(config, merged):
    base = Encoder()
    model, x = injected(copy.deepcopy(base), **config), torch.randn(4, 6)
    with torch.no_grad():
        for name in trained_names(Survey(model)):
            if name in dict(model.named_parameters()):
                model.get_parameter(name).add_(0.1)
    model.eval(), base.eval()
    if merged:
        lora.merge(model)
    adapter = lora.extract(model)
    assert lora.attach(base, adapter) == list(adapter.layers)
    lora.unmerge(model)
    assert same_bits(base(x), model(x))
    again = lora.extract(base)
    assert again.config == adapter.config
    assert again.layers.keys() == adapter.layers.keys()
    assert all(same_bits(again.tensors[name], t) for name, t in adapter.tensors.items())


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_attaching_to_an_injected_model_keeps_its_parameter_objects(merged):
    adapter = lora.extract(trained_head())
    model, x = mlp(6, 5, 4), torch.randn(3, 6)
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=9, target_modules=["0"], modules_to_save=["2"]))
    if merged:
        lora.merge(model)
    before = {name: id(p) for name, p in model.named_parameters()}
    lora.attach(model, adapter)
    assert {name: id(p) for name, p in model.named_parameters() if name != "0.weight"} == {
        name: i for name, i in before.items() if name != "0.weight"
    }
    assert model[0].scaling == adapter.layers["0"].scaling
    expected = mlp(6, 5, 4)
    expected.load_state_dict({k: t for k, t in model.state_dict().items() if "lora_" not in k})
    lora.attach(expected, adapter)
    assert close(model(x), expected(x), factor=32)


def test_attach_lists_all_problems_at_once_and_changes_nothing():
    adapter = lora.extract(injected(mlp(6, 5, 4, 3), modules_to_save=["4"], target_modules=["0", "2"]))
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(4, 2, bias=False))
    expect_refusal(
        lora.AttachError,
        r"(?s)does not fit Sequential: 0: lora_A \(2, 6\) in the adapter, \(2, 7\) in the model; "
        r"2: expected a ConvolutionUpdate.*4.weight: shape \(3, 4\) in the adapter, "
        r"\(2, 4\) in the model.*4.bias: no such tensor in the model.*Nothing was changed",
        model,
        lambda: lora.attach(model, adapter),
    )


def test_attach_to_an_injected_model_wants_the_same_layers():
    adapter = lora.extract(injected(mlp(6, 5, 4, 3), target_modules=["0", "2"], rank_pattern={"^0": 3}))
    model = injected(mlp(6, 5, 4, 3), target_modules=["0", "4"], modules_to_save=["2"])
    expect_refusal(
        lora.AttachError,
        r"(?s)0: rank 3 in the adapter, 2 in the model.*2: adapted in the adapter, not in the model"
        r".*4: adapted in the model, not in the adapter.*2.weight: trained in the model, not in the adapter",
        model,
        lambda: lora.attach(model, adapter),
    )


def test_attach_says_how_many_more_problems_there_are():
    adapter = lora.extract(injected(mlp(*range(3, 15))))
    with pytest.raises(lora.AttachError, match=r"; and 3 more\. Nothing was changed"):
        lora.attach(nn.Sequential(nn.ReLU()), adapter)


def test_attach_refuses_a_tensor_that_is_tied_to_another():
    adapter = lora.Adapter(lora.LoRAConfig(target_modules=["body"]), {}, {"head.weight": torch.zeros(11, 6)})
    model = Tied()
    expect_refusal(
        lora.AttachError, "head.weight: tied to embed.weight in the model", model, lambda: lora.attach(model, adapter)
    )


def test_a_bias_beside_that_no_mode_names_is_not_lost():
    update = lora.extract(injected(mlp(6, 5, 4), target_modules=["0"])).layers["0"]
    adapter = lora.Adapter(lora.LoRAConfig(r=2, target_modules=["0"]), {"0": update}, {"2.bias": torch.ones(4)})
    model = mlp(6, 5, 4)
    lora.attach(model, adapter)
    assert same_bits(lora.extract(model).tensors["2.bias"], torch.ones(4))


def test_attach_takes_back_what_extract_gave_when_the_biases_are_no_longer_trained() -> None:
    model = injected(mlp(6, 5, 4), target_modules=["0"], bias="lora_only")
    lora.mark_only_lora_as_trainable(model, bias="none")
    adapter = lora.extract(model)
    assert not adapter.tensors
    assert lora.attach(model, adapter) == ["0"]


def test_a_second_injection_leaves_the_bias_mode_of_the_first() -> None:
    model = injected(mlp(6, 5, 4), target_modules=["0"], bias="all")
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["2"]))
    assert set(lora.extract(model).tensors) == {"0.bias", "2.bias"}


# --- adapters in the form of other libraries, onto slices -----------------------------------------------------------

FUSED = {"target_modules": ["0"], "enable_lora": {"0": (True, False, True)}}


def fused(**config) -> nn.Module:
    """Layer 0 is three projections in one, of which the first and the last have updates; layer 2 has none."""
    return injected(mlp(6, 15, 4), **FUSED | config)


def plain_adapter(model: nn.Module) -> lora.Adapter:
    """What is extracted, in the form in which PEFT keeps it."""
    adapter = lora.extract(model)
    return lora.Adapter(adapter.config, {name: update.plain() for name, update in adapter.layers.items()}, adapter.tensors)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("config", [{}, {"lora_alpha": 7}, {"use_rslora": True}, {"r": 3, "use_rslora": True}])
def test_a_plain_adapter_goes_into_the_slices_that_it_came_from(config, merged):
    source, model, x = fused(**config), fused(**config), torch.randn(5, 6)
    model.load_state_dict(source.state_dict())
    with torch.no_grad():
        model[0].lora_A.zero_(), model[0].lora_B.zero_()
    if merged:
        lora.merge(model)
    parameters = id(model[0].lora_A), id(model[0].lora_B)
    assert lora.attach(model, plain_adapter(source)) == ["0"]
    assert (id(model[0].lora_A), id(model[0].lora_B)) == parameters
    assert same_bits(model[0].lora_A, source[0].lora_A)
    assert same_bits(model[0].lora_B, source[0].lora_B)
    assert (model[0].scaling, model[0].lora_alpha) == (source[0].scaling, source[0].lora_alpha)
    assert model[0].merged == merged
    lora.unmerge(model)
    assert same_bits(model(x), source(x))


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("lora_alpha", [7.0, 0.1])
@pytest.mark.parametrize("mask", [(True, False, True), (True, True, True), (False, True, False)])
def test_slices_go_to_peft_and_back_any_number_of_times(mask, lora_alpha, use_rslora, tmp_path):
    model = fused(enable_lora={"0": mask}, lora_alpha=lora_alpha, use_rslora=use_rslora)
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}, model[0].scaling, model[0].lora_alpha
    files = []
    for _ in range(5):
        lora.save(lora.extract(model), tmp_path)
        files.append([path.read_bytes() for path in sorted(tmp_path.iterdir())])
        lora.attach(model, lora.load(tmp_path))
    assert ({n: bits(t) for n, t in model.state_dict().items()}, model[0].scaling, model[0].lora_alpha) == before
    assert all(file == files[0] for file in files)


def test_a_plain_adapter_that_sees_other_slices_is_refused():
    model = fused()
    for other, message in (
        (fused(enable_lora={"0": (True, True, False)}), "0: kind linear in the adapter, fused in the model"),
        (injected(mlp(6, 15, 4), target_modules=["0"], r=4), "0: kind linear in the adapter, fused in the model"),
        (fused(enable_lora={"0": (True, False, False)}, r=3), "0: kind linear in the adapter, fused in the model"),
        (fused(r=1), "0: rank 1 in the adapter, 2 in the model"),
        (fused(r=3), "0: rank 3 in the adapter, 2 in the model"),
    ):
        adapter = lora.extract(other) if type(other[0].update) is lora.LoRAUpdate else plain_adapter(other)
        expect_refusal(lora.AttachError, message, model, lambda adapter=adapter: lora.attach(model, adapter))


def test_a_plain_adapter_of_other_layers_is_refused_and_changes_nothing():
    model = fused(target_modules=["0", "2"])
    adapter = plain_adapter(fused())
    expect_refusal(lora.AttachError, "2: adapted in the model, not in the adapter", model, lambda: lora.attach(model, adapter))


def test_slices_are_not_made_of_a_plain_adapter_on_a_model_that_was_not_injected():
    source, model, x = fused(), mlp(6, 15, 4), torch.randn(5, 6)
    model.load_state_dict({name: tensor for name, tensor in source.state_dict().items() if "lora_" not in name})
    lora.attach(model, plain_adapter(source))
    assert type(model[0].update) is lora.LoRAUpdate
    assert close(model(x), source(x), factor=16)


@pytest.mark.parametrize("of_base", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("of_adapter", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_factors_are_made_as_inject_makes_them(of_adapter, of_base):
    model = injected(mlp(6, 5, 4))
    adapter = lora.extract(fill(model)).to(dtype=of_adapter)
    other, fresh = mlp(6, 5, 4).to(of_base), injected(mlp(6, 5, 4).to(of_base))
    lora.attach(other, adapter)
    wanted = torch.promote_types(of_adapter, fresh[0].lora_A.dtype)  # float64 keeps its digits
    assert {layer.lora_A.dtype for layer in other if isinstance(layer, lora.AdaptedLayer)} == {wanted}
    assert same_bits(other[0].lora_A.detach(), adapter.layers["0"].A.to(wanted))


def test_a_float16_adapter_on_a_float32_model_trains():
    adapter = lora.extract(fill(injected(mlp(6, 5, 4)))).to(dtype=torch.float16)
    model = mlp(6, 5, 4)
    lora.attach(model, adapter)
    lora.mark_only_lora_as_trainable(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(5):
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step(), optimizer.zero_grad()
    assert all(p.isfinite().all() for p in model.parameters())
