"""In-place adoption: the layer stays itself, and eject gives back exactly what was there."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import loralib as lora
from loralib import layers
from models import Doubling, adopt, bits, close, delta_of, same_bits, snapshot, update_for


class Symmetric(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return (W + W.t()) / 2


def oddly_set(layer: nn.Linear) -> nn.Linear:
    """The layer with everything on it that users put on layers."""
    layer.eval()
    layer.weight.requires_grad_(False)
    layer.note = {"a": 1}
    layer.register_buffer("count", torch.tensor(3))
    layer.register_buffer("scratch", torch.ones(2), persistent=False)
    layer.inner = nn.Identity()
    layer.register_forward_hook(lambda module, args, y: y + 1)
    layer.register_full_backward_hook(lambda *_: None)
    layer.register_state_dict_post_hook(lambda *_: None)
    return layer


# --- adoption -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [nn.Linear, Doubling])
def test_an_adopted_layer_is_the_same_object_and_still_a_layer_of_its_class(cls):
    layer = cls(6, 5)
    W, b, state = layer.weight, layer.bias, list(layer.state_dict())
    assert adopt(layer) is layer
    assert isinstance(layer, cls)
    assert isinstance(layer, lora.LoRALayer)
    assert layer.weight is W
    assert layer.bias is b
    assert list(layer.state_dict()) == [*state, "lora_A", "lora_B"]


def test_the_factors_are_the_tensors_of_the_update_uncopied():
    layer, update = nn.Linear(6, 5), update_for(nn.Linear(6, 5))
    layers.adopt(layer, update)
    assert layer.lora_A.data_ptr() == update.A.data_ptr()
    assert (layer.update.r, layer.update.lora_alpha, layer.update.scaling) == (update.r, update.lora_alpha, update.scaling)


@pytest.mark.parametrize(("cls", "factor"), [(nn.Linear, 1), (Doubling, 2)])
def test_an_adopted_layer_computes_with_its_update_in_the_weight_of_the_base(cls, factor):
    layer, x = cls(6, 5), torch.randn(3, 6)
    y = layer(x)
    adopt(layer)
    assert close(layer(x), y + factor * delta_of(layer, x), factor=16)
    layer.disabled = True
    assert same_bits(layer(x), y)


def test_a_forward_of_ones_own_keeps_the_name_of_its_argument():
    layer, x = Doubling(6, 5), torch.randn(3, 6)
    adopt(layer)
    assert torch.equal(layer(hidden=x), layer(x))


def test_hooks_of_the_base_layer_are_kept_and_run():
    layer, x, calls = nn.Linear(6, 5), torch.randn(3, 6), []
    layer.register_forward_pre_hook(lambda module, args: calls.append("pre"))
    layer.register_forward_hook(lambda module, args, y: y + 100)
    adopt(layer)
    assert layer(x).mean() > 50
    assert calls == ["pre"]


def test_mode_and_flags_stay_as_found():
    layer = nn.Linear(6, 5).eval()
    layer.weight.requires_grad_(False)
    adopt(layer, lora_dropout=0.5)
    assert not layer.training
    assert not layer.lora_dropout.training
    assert not layer.merged
    assert [layer.weight.requires_grad, layer.bias.requires_grad, layer.lora_A.requires_grad] == [False, True, True]
    assert not layer.train().eval().merged


def test_update_dtypes_may_differ_from_the_weights():
    layer = nn.Linear(6, 5).to(torch.bfloat16)
    adopt(layer)
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16
    assert layer.lora_A.dtype == torch.float32
    layer.merge()
    assert layer.weight.dtype == torch.bfloat16


# --- eject ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [nn.Linear, Doubling])
@pytest.mark.parametrize("prepare", [lambda layer: layer, oddly_set])
@pytest.mark.parametrize("merged", [False, True])
def test_eject_restores_everything(cls, prepare, merged):
    layer = prepare(cls(6, 5))
    before, order = snapshot(layer), list(vars(layer))
    adopt(layer, lora_dropout=0.1 if cls is nn.Linear else 0.0)
    if merged:
        layer.merge()
    layer.disabled = True
    assert snapshot(layer) != before
    assert layers.eject(layer) is layer
    assert snapshot(layer) == before
    assert list(vars(layer)) == order


def test_the_snapshot_sees_a_change_of_any_kind():
    layer = oddly_set(nn.Linear(6, 5))
    changes = [
        layer.train,
        lambda: layer.weight.requires_grad_(True),
        lambda: layer.weight.data.add_(1),
        lambda: setattr(layer, "bias", nn.Parameter(layer.bias.detach().clone())),
        lambda: setattr(layer, "other", None),
        lambda: layer.register_forward_hook(print),
        lambda: layer.count.add_(1),
        lambda: setattr(layer, "inner", nn.Identity()),
        lambda: setattr(layer, "__class__", Doubling),
    ]
    for change in changes:
        before = snapshot(layer)
        assert snapshot(layer) == before
        change()
        assert snapshot(layer) != before


def test_what_was_trained_in_the_base_while_adapted_stays():
    layer = nn.Linear(6, 5)
    adopt(layer)
    with torch.no_grad():
        layer.weight.fill_(2)
    layer.half()
    assert torch.equal(layers.eject(layer).weight, torch.full((5, 6), 2.0, dtype=torch.half))


def test_the_drop_in_layer_becomes_a_plain_one():
    layer, x = lora.Linear(6, 5, r=2), torch.randn(2, 6)
    y = F.linear(x, layer.weight, layer.bias)
    layers.eject(layer.eval())
    assert type(layer) is nn.Linear
    assert vars(layer).keys() == vars(nn.Linear(6, 5)).keys()
    assert torch.equal(layer(x), y)


# --- what cannot be adapted -----------------------------------------------------------------------------------------


class WithOwnMerge(nn.Linear):
    def merge(self):
        """A method that adoption would hide."""


def integer_layer() -> nn.Linear:
    layer = nn.Linear(6, 5)
    layer.weight = nn.Parameter(torch.zeros(5, 6, dtype=torch.int8), requires_grad=False)
    return layer


def having(**attributes) -> nn.Linear:
    layer = nn.Linear(6, 5)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


REFUSED = {
    "other layers": (lambda: nn.LSTM(2, 2), "LSTM layers cannot be adapted; those that can are linear, embedding"),
    "other updates": (lambda: nn.Conv2d(1, 1, 1), "expected a ConvolutionUpdate .* for a Conv2d layer, got a LoRAUpdate"),
    "adapted layers": (lambda: adopt(nn.Linear(6, 5)), "it is a LoRA layer already; eject it first"),
    "LoRA layers without LoRA": (lambda: lora.Linear(6, 5), "it was built with r=0"),
    "lazy layers": (lambda: nn.LazyLinear(5), "its shape is not known yet"),
    "integer weights": (integer_layer, "its weight has dtype torch.int8"),
    "attributes of ours": (lambda: having(scaling=2.0, lora_A=None, r=4), "attributes of its own named lora_A, r, scaling"),
    "attributes of our constructor": (lambda: having(fan_in_fan_out=False), "attributes of its own named fan_in_fan_out"),
    "methods of ours": (lambda: WithOwnMerge(6, 5), "attributes of its own named merge"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_layers_that_cannot_be_adapted_are_refused_unchanged(kind):
    make, message = REFUSED[kind]
    layer = make()
    attributes, cls = dict(vars(layer)), type(layer)
    with pytest.raises(lora.LayerError, match=message):
        layers.adopt(layer, update_for(nn.Linear(6, 5)))
    assert type(layer) is cls
    assert vars(layer) == attributes


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_layers_are_refused():
    with pytest.raises(lora.LayerError, match="cannot be adapted"):
        layers.adopt(torch.jit.script(nn.Linear(6, 5)), update_for(nn.Linear(6, 5)))


# --- weights that cannot be merged ----------------------------------------------------------------------------------


def parametrized() -> nn.Linear:
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


@pytest.mark.parametrize("make", [parametrized, lambda: parametrizations.weight_norm(nn.Linear(6, 6))])
def test_a_computed_weight_is_adapted_but_never_merged(make):
    layer, x = make(), torch.randn(3, 6)
    y, cls = layer(x), type(layer)
    adopt(layer)
    assert close(layer(x), y + delta_of(layer, x), factor=16)
    with pytest.raises(lora.LayerError, match=r"not a Parameter \(a parametrization .* Nothing was changed"):
        layer.merge()
    assert not layer.merged
    layer.merge_weights = True
    with pytest.raises(lora.LayerError, match="remove that first"):
        layer.eval()
    assert type(layers.eject(layer)) is cls
    assert same_bits(layer(x), y)


def test_a_weight_of_a_subclass_of_tensor_is_not_merged():
    class Sharded(nn.Parameter):
        pass

    layer = adopt(nn.Linear(6, 5))
    before = bits(layer.weight)
    layer.weight = Sharded(layer.weight.detach())
    with pytest.raises(lora.LayerError, match="its weight is a Sharded, and only plain tensors can be merged"):
        layer.merge()
    assert bits(layer.weight) == before


def test_a_disabled_layer_is_not_merged():
    layer = adopt(nn.Linear(6, 5))
    layer.disabled = True
    with pytest.raises(lora.LayerError, match="its update is disabled"):
        layer.merge()
