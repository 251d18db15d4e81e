"""The projections of an attention, seen as layers: a view of their part of the attention's own weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kinds import PROJECTIONS
from loralib.layers.projection import Projection, rows_of, slot_of
from models import same_bits

PACKED = nn.MultiheadAttention(8, 2)
APART = nn.MultiheadAttention(8, 2, kdim=5, vdim=7)


def parts(owner: nn.MultiheadAttention) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of each projection, by torch's own names for them."""
    packed = owner.in_proj_weight
    weights = [getattr(owner, f"{name}_weight") for name in PROJECTIONS] if packed is None else packed.chunk(3)
    return dict(zip(PROJECTIONS, zip(weights, owner.in_proj_bias.chunk(3), strict=True), strict=True))


@pytest.mark.parametrize("owner", [PACKED, APART], ids=["packed", "apart"])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_computes_with_its_part_of_the_weight_and_of_the_bias(owner, name):
    nn.init.normal_(owner.in_proj_bias)
    W, b = parts(owner)[name]
    layer, x = Projection(owner, name), torch.randn(3, 4, W.shape[1])
    assert same_bits(layer.weight, W)
    assert layer.weight.untyped_storage().data_ptr() == W.untyped_storage().data_ptr()
    assert torch.allclose(layer(x), F.linear(x, W, b), atol=1e-5)
    assert layer.slot == slot_of(owner, name) == ("in_proj_weight" if owner is PACKED else f"{name}_weight")


def test_without_a_bias_there_is_none():
    layer, x = Projection(nn.MultiheadAttention(8, 2, bias=False), "v_proj"), torch.randn(4, 8)
    assert torch.allclose(layer(x), x @ layer.weight.t(), atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_a_projection_has_no_parameter_and_its_owner_is_no_child(training):
    layer = Projection(nn.MultiheadAttention(8, 2).train(training), "q_proj")
    assert list(layer.parameters()) == list(layer.children()) == []
    assert dict(layer.state_dict()) == {}
    assert layer.training is training


def test_rows_are_taken_from_what_holds_all_three_and_nothing_else_is_cut():
    owner, all_three, one = nn.MultiheadAttention(2, 1), torch.arange(6), torch.arange(2)
    assert [rows_of(owner, name, all_three).tolist() for name in PROJECTIONS] == [[0, 1], [2, 3], [4, 5]]
    assert all(rows_of(owner, name, one) is one for name in PROJECTIONS)


def test_a_weight_that_the_owner_gets_is_the_projections():
    owner = nn.MultiheadAttention(8, 2)
    layer = Projection(owner, "k_proj")
    owner.in_proj_weight = nn.Parameter(torch.ones(24, 8))
    assert layer.weight.sum() == 64
