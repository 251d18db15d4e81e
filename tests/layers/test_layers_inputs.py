"""The input of a layer has several names, and nothing else is taken for it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.layers.inputs import named_input, without_input
from models import injected, mlp, same_bits

LAYERS = {
    "Linear": (lora.Linear(5, 4, r=2), torch.randn(3, 5)),
    "MergedLinear": (lora.MergedLinear(5, 6, r=2, enable_lora=[True, False]), torch.randn(3, 5)),
    "Embedding": (lora.Embedding(7, 4, r=2), torch.randint(7, (3, 2))),
    "Conv2d": (lora.Conv2d(4, 6, 3, r=2), torch.randn(2, 4, 5, 5)),
    "injected": (injected(mlp(5, 4))[0], torch.randn(3, 5)),
    "r=0": (lora.Linear(5, 4), torch.randn(3, 5)),
    "merged": (lora.Linear(5, 4, r=2).eval(), torch.randn(3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_input_may_have_torchs_name_and_must_be_there(name):
    layer, x = LAYERS[name]
    assert same_bits(layer(input=x), layer(x))
    calls: dict[str, Callable[[], object]] = {
        "is missing its input": layer,
        "unexpected keyword argument 'input'": lambda: layer(x, input=x),
        "unexpected keyword argument 'y'": lambda: layer(y=x),
        "unexpected keyword argument 'z'": lambda: layer(x, z=x),
    }
    for message, call in calls.items():
        with pytest.raises(TypeError, match=message):
            call()


class Odd(nn.Linear):
    """Calls its input in its own way."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden)


def test_a_custom_layer_may_call_its_input_as_it_likes():
    model = injected(nn.Sequential(Odd(5, 4)))
    x = torch.randn(3, 5)
    assert same_bits(model[0](hidden=x), model[0](x))
    with pytest.raises(TypeError, match="missing its input"):
        model[0]()


def test_torchs_name_goes_before_others():
    x, y = torch.ones(1), torch.zeros(1)
    for arguments in ({"mask": y, "input": x}, {"mask": y, "x": x}, {"hidden": x, "mask": y}):
        assert named_input(arguments) is x
    assert without_input({"input": x, "mask": y, "x": x}) == {"mask": y}
