"""The projections of an attention, seen as layers: a view of their part of the attention's own weight."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import loralib as lora
from attentions import attention_of
from kinds import COPIES, PROJECTIONS, fill
from loralib.layers.projection import Projection, rows_of, slot_of
from models import bits, close, same_bits

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


ALL = (*PROJECTIONS, "out_proj")
SUBSETS = [subset for n in range(1, 5) for subset in combinations(ALL, n)]


@pytest.mark.parametrize("options", [{}, {"kdim": 5, "vdim": 3}])
@pytest.mark.parametrize("merged", SUBSETS)
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_any_of_the_projections_may_be_merged_alone(merged, options):
    plain, layer = attention_of(**options)
    x = torch.randn(2, 3, 8), torch.randn(2, 4, options.get("kdim", 8)), torch.randn(2, 4, options.get("vdim", 8))
    y, originals = layer(*x)[0], {name: (p, bits(p)) for name, p in layer.named_parameters()}
    state = {name: bits(t) for name, t in layer.state_dict().items()}
    for name in merged:
        layer.get_submodule(name).merge()
    assert {name for name in ALL if layer.get_submodule(name).merged} == set(merged)
    assert close(layer(*x)[0], y, factor=64)
    assert {name: bits(t) for name, t in layer.state_dict().items()} == state
    for how in COPIES.values():
        assert same_bits(how(layer)(*x)[0], layer(*x)[0])
    fill(layer)
    fresh = layer(*x)[0]
    for name in reversed(merged):
        layer.get_submodule(name).unmerge()
    assert all(p is originals[name][0] for name, p in layer.named_parameters())
    assert all(bits(p) == originals[name][1] for name, p in plain.named_parameters())
    del fresh


def test_merging_in_steps_and_for_good():
    _, layer = attention_of()
    x = torch.randn(2, 3, 8)
    y = layer(x, x, x)[0]
    layer.k_proj.merge()
    layer.q_proj.merge()
    layer.k_proj.unmerge()
    assert close(layer(x, x, x)[0], y, factor=64)
    lora.merge(layer, keep=False)
    assert type(layer) is nn.MultiheadAttention
    assert list(layer.state_dict()) == list(nn.MultiheadAttention(8, 2).state_dict())
    assert close(layer(x, x, x)[0], y, factor=64)


def test_flags_that_are_set_while_some_projections_are_merged_stay():
    _, layer = attention_of()
    layer.q_proj.merge()
    layer.in_proj_weight.requires_grad_(False)
    layer.k_proj.merge()
    assert not layer.in_proj_weight.requires_grad
    lora.unmerge(layer)
    assert not layer.in_proj_weight.requires_grad


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("others", [(), ("k_proj", "out_proj")])
def test_one_projection_may_be_taken_out_alone(others, keep):
    model = nn.ModuleDict({"a": attention_of(("q_proj", *others))[1]})
    layer, x = model["a"], torch.randn(2, 3, 8)
    y = layer(x, x, x)[0]
    if keep:
        lora.eject(layer.q_proj)
    else:
        lora.merge(layer.q_proj, keep=False)
        assert close(layer(x, x, x)[0], y, factor=64)
    assert "q_proj" not in layer._modules
    assert set(lora.extract(model).layers) == {f"a.{name}" for name in others} if others else True
    assert (type(layer) is nn.MultiheadAttention) is (not others)
