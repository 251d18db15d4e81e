"""What programs written for loralib 0.1 do goes on working: each test runs on 0.1.2 as well, which proves that it did."""

from types import ModuleType

import pytest
import torch
from torch import nn

import loralib as lora
from models import close
from peers import loralib_0_1

LAYERS = {
    "Linear": ((5, 4), {}, (3, 5)),
    "MergedLinear": ((5, 6), {"enable_lora": [True, False]}, (3, 5)),
    "Embedding": ((7, 4), {}, (3, 2)),
    "Conv2d": ((4, 6, 3), {"padding": 1}, (2, 4, 5, 5)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
both = pytest.mark.parametrize("module", [loralib_0_1, lambda: lora], ids=["0.1.2", "ours"])


def build(module: ModuleType, name: str, **options: object) -> tuple[nn.Module, torch.Tensor]:
    """A layer with random factors, and an input for it; the same numbers for both libraries."""
    sizes, own, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = getattr(module, name)(*sizes, **{"r": 2, "lora_alpha": 3} | own | options)
    with torch.no_grad():
        for factor in (layer.lora_A, layer.lora_B):
            factor.copy_(torch.randn(factor.shape))
    return layer, torch.randint(7, shape) if name == "Embedding" else torch.randn(shape)


# --- dropout, and what is a module ----------------------------------------------------------------------------------


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@both
@every_layer
def test_a_layer_without_dropout_is_a_leaf(module, name):
    layer = build(module(), name)[0]
    expected = [nn.Conv2d] if (name, module()) == ("Conv2d", loralib_0_1()) else [type(layer)]
    assert [type(m) for m in layer.modules() if not list(m.children())] == expected
    assert "lora_dropout" not in repr(layer)
    x = torch.randn(3)
    assert layer.lora_dropout(x) is x


@both
@pytest.mark.parametrize("name", ["Linear", "MergedLinear"])
@pytest.mark.parametrize("double", [lambda x: 2 * x, Double()], ids=["function", "module"])
def test_a_function_or_a_module_may_be_assigned_as_dropout(module, name, double):
    layer, x = build(module(), name, merge_weights=False)
    base, whole = nn.functional.linear(x, layer.weight, layer.bias), layer(x)
    layer.lora_dropout = double
    assert close(layer(x) - base, 2 * (whole - base), factor=64)
