"""What is known of quantized weights: their kinds, the weight they stand for, and what quantizing again loses."""

import pytest
import torch
from torch import nn

from loralib import quant
from peers import quantizer
from quantized_kinds import KINDS, TAKEN, linear


@pytest.mark.parametrize("kind", TAKEN)
def test_a_kind_is_known_with_its_weight(kind: str) -> None:
    plain = linear()
    layer = KINDS[kind](plain)
    found = quant.of(layer, layer.weight)
    assert found is not None
    assert found.kind.startswith(kind.partition(" ")[0])
    W = found.dense()
    assert W.shape == plain.weight.shape
    assert 0 < (W - plain.weight).norm() < 0.2 * plain.weight.norm()
    y = layer(torch.eye(64, requires_grad=True)).detach()
    torch.testing.assert_close(y - plain.bias, W.t(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("W", [None, torch.ones(2, 2), nn.Parameter(torch.ones(2, 2)), torch.ones(2, 2, dtype=torch.int8), "W"])
def test_anything_else_is_not(W: object) -> None:
    assert quant.of(nn.Linear(2, 2), W) is None


def test_a_layer_that_was_not_quantized_yet_is_not_known() -> None:
    bnb = quantizer("bitsandbytes").nn
    for layer in (bnb.Linear4bit(64, 64), bnb.Linear8bitLt(64, 64, has_fp16_weights=False)):
        assert quant.of(layer, layer.weight) is None


def test_how_much_of_an_update_is_lost() -> None:
    W = torch.randn(4, 4)
    changed = W + torch.randn(4, 4)
    assert quant.share_lost(W, changed, changed) == pytest.approx(0)
    assert quant.share_lost(W, changed, W) == pytest.approx(1)
    assert quant.share_lost(W, changed, W + 0.25 * (changed - W)) == pytest.approx(0.75)
    assert quant.share_lost(W, W, changed) == 0.0
