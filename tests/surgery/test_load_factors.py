"""A model starts from the factors of an adapter: all of them, or nothing changes."""

from pathlib import Path

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.surgery.load_factors import load_factors
from models import expect_refusal, injected, mlp, same_bits, trained_head


def model_of(seed: int = 0, **config) -> nn.Module:
    torch.manual_seed(seed)
    return injected(mlp(6, 5, 4, 3), **{"target_modules": ["0", "2"]} | config)


def trained(tmp_path: Path, how: str = "folder", **config) -> tuple[Path, lora.Adapter]:
    """An adapter, of other values than a fresh model's, in a file or folder."""
    model = model_of(seed=7, **config)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    adapter = lora.extract(model)
    if how == "folder":
        lora.save(adapter, tmp_path / "adapter")
        return tmp_path / "adapter", adapter
    torch.save(lora.lora_state_dict(model), tmp_path / "factors.pt")
    return tmp_path / "factors.pt", adapter


@pytest.mark.parametrize("how", ["folder", "file of 0.1"])
def test_the_factors_become_the_models_own_tensors_and_all_else_stays(how, tmp_path):
    path, adapter = trained(tmp_path, how)
    model = model_of()
    parameters = dict(model.named_parameters())
    others = {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name}
    load_factors(model, path)
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert all(same_bits(model.state_dict()[name], tensor) for name, tensor in others.items())
    for name, update in lora.extract(model).layers.items():
        assert same_bits(update.A, adapter.layers[name].A)
        assert same_bits(update.B, adapter.layers[name].B)


def test_what_was_trained_in_full_is_not_loaded(tmp_path):
    source = trained_head()
    lora.save(lora.extract(source), tmp_path / "adapter")
    model = injected(mlp(6, 5, 4), target_modules=["0"])
    head = model[2].weight.clone()
    load_factors(model, tmp_path / "adapter")
    assert same_bits(model[2].weight, head)
    assert same_bits(model[0].lora_A, source[0].lora_A)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target_modules": ["0"]}, "2: in the adapter, not in this run"),
        ({"target_modules": ["0", "2", "4"]}, "4: in this run, not in the adapter"),
        ({"r": 3}, r"0: .*lora_A"),
        ({"lora_alpha": 6}, r"0: scaling 1\.5 in the adapter \(lora_alpha=3\), 3 in this run"),
        ({"use_rslora": True}, r"0: scaling 1\.5 in the adapter"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(config, message, tmp_path):
    path, _ = trained(tmp_path)
    model = model_of(**config)
    expect_refusal(lora.AttachError, message, model, lambda: load_factors(model, path))


def test_a_file_of_0_1_says_no_scaling_so_the_models_is_taken(tmp_path):
    path, _ = trained(tmp_path, "file", lora_alpha=16)
    model = model_of(lora_alpha=6)
    load_factors(model, path)
    assert {update.scaling for update in lora.extract(model).layers.values()} == {3.0}


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_of_many_problems_four_are_named_and_the_others_counted(extra, tmp_path):
    sizes = [3] * (6 + extra)
    lora.save(lora.extract(injected(mlp(*sizes))), tmp_path / "adapter")
    model = injected(mlp(*sizes), target_modules=["0"])
    with pytest.raises(lora.AttachError) as refused:
        load_factors(model, tmp_path / "adapter")
    said = str(refused.value)
    assert said.count("not in this run") == 4
    assert (f"; and {extra} more" in said) == bool(extra)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0.lora_A": torch.ones(2, 6)}, "half of the factors of '0'"),
        ({"0.weight": torch.ones(2, 6)}, "no LoRA factors"),
    ],
)
def test_a_file_without_pairs_of_factors_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "factors.pt")
    model = model_of()
    expect_refusal(lora.FormatError, message, model, lambda: load_factors(model, tmp_path / "factors.pt"))
    expect_refusal(lora.FormatError, "none", model, lambda: load_factors(model, tmp_path / "none"))


def test_factors_of_layers_that_the_model_does_not_have_are_named_by_a_file_of_0_1_too(tmp_path):
    path, _ = trained(tmp_path, "file")
    model = model_of(target_modules=["0"])
    expect_refusal(lora.AttachError, "2: in the adapter, not in this run", model, lambda: load_factors(model, path))


def test_slices_are_found_in_their_plain_form(tmp_path):
    fused = {"target_modules": ["0"], "enable_lora": {"0": (True, False, True)}}
    source = injected(mlp(4, 6), **fused)
    plain = {name: update.plain() for name, update in lora.extract(source).layers.items()}
    lora.save(lora.Adapter(lora.LoRAConfig(), plain), tmp_path / "adapter")
    model = injected(mlp(4, 6), **fused)
    model[0].lora_B.data.zero_()
    load_factors(model, tmp_path / "adapter")
    assert same_bits(model[0].lora_B, source[0].lora_B)
    assert same_bits(model[0].lora_A, source[0].lora_A)
