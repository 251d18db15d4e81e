"""What is too small to gain from the fused operations is computed in the plain form, and learns the same."""

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from loralib import ops
from loralib.ops import autograd, dispatch, reference
from loralib.ops.autograd import dropout
from ops.conftest import FEW, SMALL


@pytest.fixture(autouse=True)
def what_is_small_is_small(nothing_is_small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "SMALL", SMALL)
    monkeypatch.setattr(dropout, "FEW", FEW)


def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    for called, module in (("autograd", autograd), ("reference", reference)):

        def counted(*args, inner=module.lora_linear, name=called, **options) -> Tensor:
            names.append(name)
            return inner(*args, **options)

        monkeypatch.setattr(module, "lora_linear", counted)
    return names


def layer_of(d: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(d, d).to(dtype)).requires_grad_(False)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"]))
    return model[0]


def test_few_tokens_take_the_plain_form_and_many_the_fused_one(monkeypatch):
    names = taken(monkeypatch)
    layer_of(64)(torch.randn(4, 64))
    layer_of(64)(torch.randn(400, 64))
    layer_of(4)(torch.randn(0, 4))
    assert names == ["reference", "autograd", "reference"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_low_precision_the_fused_one_always_computes(dtype, monkeypatch):
    names = taken(monkeypatch)
    layer_of(8, dtype)(torch.randn(4, 8).to(dtype))
    assert names == ["autograd"]


def test_under_autocast_too(monkeypatch):
    names = taken(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        layer_of(8)(torch.randn(4, 8))
    assert names == ["autograd"]


def test_what_is_forced_computes(monkeypatch):
    names = taken(monkeypatch)
    with ops.use("autograd"):
        layer_of(8)(torch.randn(4, 8))
    assert names == ["autograd"]


def test_few_elements_are_dropped_by_a_mask_and_more_by_gaps():
    assert dropout.draw(torch.ones(100), 0.1)[0].dtype == torch.bool
    assert dropout.draw(torch.ones(10_000), 0.1)[0].dtype == torch.uint8
