"""Files that loralib 0.1 saved in evaluation mode hold W + ΔW: an update is counted once, whoever loads them."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from kinds import fill
from models import bits, close
from peers import loralib_0_1

MODELS = {
    "linear": (lambda of: of.Linear(16, 12, r=2, lora_alpha=4), lambda: torch.randn(3, 16)),
    "fan in, fan out": (lambda of: of.Linear(16, 12, r=2, fan_in_fan_out=True), lambda: torch.randn(3, 16)),
    "embedding": (lambda of: of.Embedding(17, 12, r=2, lora_alpha=4), lambda: torch.arange(17)),
    "merged": (lambda of: of.MergedLinear(16, 12, r=2, enable_lora=[False, True, True]), lambda: torch.randn(3, 16)),
    "conv": (lambda of: of.Conv2d(3, 4, 3, r=2), lambda: torch.randn(2, 3, 6, 6)),
}


def trained(of, name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model of the library `of`, and the state dict of its base."""
    torch.manual_seed(0)
    model = nn.Sequential(MODELS[name][0](of))
    base = {key: tensor.clone() for key, tensor in model.state_dict().items() if "lora_" not in key}
    return fill(model), base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_file_that_0_1_saved_merged_counts_its_update_once(name, evaluated, dtype):
    theirs, base = trained(loralib_0_1(), name)
    x = MODELS[name][1]()
    wanted = theirs.eval()(x).detach()
    file = {key: tensor.to(dtype) for key, tensor in theirs.state_dict().items()}
    ours, _ = trained(lora, name)
    ours.load_state_dict(base, strict=False)
    W = bits(ours[0].pristine_weight)
    ours.train(not evaluated)
    with pytest.warns(UserWarning, match="was saved merged"):
        ours.load_state_dict(file, strict=False)
    assert close(ours(x), wanted, factor=64 if dtype == torch.float32 else 2**18)
    assert bits(ours[0].pristine_weight) == W


@pytest.mark.parametrize("name", MODELS)
def test_other_files_are_loaded_as_they_are(name):
    ours, _ = trained(lora, name)
    unmerged = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    other = {key: torch.randn_like(tensor) for key, tensor in unmerged.items()}
    without_update = unmerged | {key: torch.zeros_like(unmerged[key]) for key in unmerged if "lora_" in key}
    base_only = {key: tensor for key, tensor in other.items() if "lora_" not in key}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in (unmerged, other, without_update, base_only):
            ours.load_state_dict(file, strict=False)
            state = ours.state_dict()
            assert all(bits(state[key]) == bits(tensor) for key, tensor in file.items())


def test_a_model_that_is_built_on_meta_takes_what_it_is_given():
    model, _ = trained(lora, "linear")
    with torch.device("meta"):
        other = nn.Sequential(lora.Linear(16, 12, r=2, lora_alpha=4))
    other.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(3, 16)
    assert close(other(x), model(x))
