"""The meta device: nothing is computed from what holds no values, and what an adapter holds is not lost there."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from kinds import KINDS, every_kind
from models import close, expect_refusal, injected, mlp, same_bits, trained_head


def put_on_meta(model: nn.Module, chosen: Callable[[str], bool]) -> nn.Module:
    """Replace the parameters whose own names are chosen by ones without values, as loaders do: past all of `nn.Module`."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and chosen(name):
                module._parameters[name] = nn.Parameter(p.detach().to("meta"), p.requires_grad)
    return model


def is_factor(name: str) -> bool:
    return name in ("lora_A", "lora_B")


MIXTURES: dict[str, Callable[[str], bool]] = {
    "factors": is_factor,
    "A": lambda name: name == "lora_A",
    "B": lambda name: name == "lora_B",
    "base": lambda name: not is_factor(name),
    "weight": lambda name: not is_factor(name) and name.endswith("weight"),
}


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("kind", every_kind)
def test_nothing_is_computed_with_tensors_some_of_which_hold_no_values(kind, mixture):
    _, model = KINDS[kind].build()
    put_on_meta(model, MIXTURES[mixture])
    for mode in (True, False):
        model.train(mode)
        for grad in (True, False):
            with pytest.raises(lora.LayerError, match="on the meta device has yet to be loaded"), torch.set_grad_enabled(grad):
                model(*KINDS[kind].inputs())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [nn.Linear(64, 600), nn.Conv1d(64, 6, 1)], ids=["linear", "convolution"])
def test_nor_are_large_inputs_low_precisions_and_dropout_an_exception(layer, dtype, dropout):
    model = nn.Sequential(copy.deepcopy(layer).to(dtype))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"], lora_dropout=dropout))
    x = torch.randn(64, 64, 64).to(dtype)
    for mixture in MIXTURES.values():
        with pytest.raises(lora.LayerError, match="on the meta device has yet to be loaded"):
            put_on_meta(copy.deepcopy(model), mixture)(x)


@pytest.mark.parametrize("kind", every_kind)
def test_shapes_can_be_computed_where_everything_is_on_the_meta_device(kind):
    _, model = KINDS[kind].build()
    inputs = KINDS[kind].inputs()
    if kind == "bag, max":
        return  # how many rows are in use depends on values
    assert model.to("meta")(*(x.to("meta") for x in inputs)).shape == model.to_empty(device="cpu")(*inputs).shape


def base_state(plain: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in plain.state_dict().items()}


def load_assigned(model: nn.Module, state: dict[str, Tensor]) -> None:
    model.load_state_dict(state, strict=False, assign=True)


def load_allocated(model: nn.Module, state: dict[str, Tensor]) -> None:
    model.to_empty(device="cpu")
    model.load_state_dict(state, strict=False)


every_way = pytest.mark.parametrize("load", [load_assigned, load_allocated])


def trained(kind: str) -> tuple[nn.Module, nn.Module, lora.Adapter]:
    """A plain model on the meta device, the adapted one, and its adapter."""
    plain, model = KINDS[kind].build()
    return copy.deepcopy(plain).to("meta"), model, lora.extract(model)


@every_way
@pytest.mark.parametrize("kind", every_kind)
def test_an_adapter_attached_on_the_meta_device_keeps_its_values(kind, load):
    other, model, adapter = trained(kind)
    lora.attach(other, adapter)
    plain = copy.deepcopy(model)
    lora.eject(plain)
    again = lora.extract(other)
    for name, update in adapter.layers.items():
        assert all(same_bits(tensor, update.tensors()[key]) for key, tensor in again.layers[name].tensors().items())
    load(other, base_state(plain))
    inputs = KINDS[kind].inputs()
    assert close(other(*inputs), model(*inputs), factor=16)
    assert all(parameter.requires_grad for name, parameter in other.named_parameters() if "lora_" in name)


@every_way
@pytest.mark.parametrize("kind", every_kind)
def test_an_adapter_is_attached_again_to_what_was_injected_on_the_meta_device(kind, load):
    other, model, adapter = trained(kind)
    lora.attach(other, adapter)
    put_on_meta(other, is_factor)  # as `inject` leaves them
    plain = copy.deepcopy(model)
    lora.eject(plain)
    load(other, base_state(plain))
    lora.attach(other, adapter)
    inputs = KINDS[kind].inputs()
    assert close(other(*inputs), model(*inputs), factor=16)


@pytest.mark.parametrize("kind", every_kind)
def test_factors_that_had_no_values_start_when_they_are_allocated(kind):
    other, model, adapter = trained(kind)
    lora.attach(other, adapter)
    put_on_meta(other, is_factor)
    plain = copy.deepcopy(model)
    lora.eject(plain)
    load_allocated(other, base_state(plain))
    inputs = KINDS[kind].inputs()
    assert close(other(*inputs), plain(*inputs), factor=16)
    assert any(tensor.any() for name, tensor in lora.lora_state_dict(other).items())


@pytest.mark.parametrize("kind", every_kind)
def test_a_whole_state_dict_is_assigned(kind):
    other, model, adapter = trained(kind)
    lora.attach(other, adapter)
    put_on_meta(other, lambda name: True)
    other.load_state_dict(model.state_dict(), assign=True)
    inputs = KINDS[kind].inputs()
    assert close(other(*inputs), model(*inputs), factor=16)


def test_what_was_trained_in_full_keeps_its_values_on_the_meta_device():
    source = trained_head()
    adapter, model, base = lora.extract(source), mlp(6, 5, 4).to("meta"), copy.deepcopy(source)
    lora.eject(base)
    lora.attach(model, adapter)
    assert same_bits(lora.extract(model).tensors["2.weight"], adapter.tensors["2.weight"])
    load_assigned(model, {name: tensor for name, tensor in base.state_dict().items() if not name.startswith("2.")})
    x = torch.randn(3, 6)
    assert close(model(x), source(x), factor=8)
    load_allocated(model, base.state_dict())
    lora.attach(model, adapter)
    assert close(model(x), source(x), factor=8)


def test_rows_of_an_embedding_on_the_meta_device_are_refused():
    rows = lora.Adapter(lora.LoRAConfig(), {}, rows={"0.weight": lora.TokenRows((1,), torch.ones(1, 4))})
    tokens = nn.Sequential(nn.Embedding(5, 4)).to("meta")
    expect_refusal(lora.AttachError, "0.weight: on the meta device", tokens, lambda: lora.attach(tokens, rows))


def test_originals_that_had_no_values_are_not_put_back():
    model = injected(mlp(6, 5, 4).to("meta"), target_modules=["0"], modules_to_save=["2"])
    lora.eject(copy.deepcopy(model))  # all on the meta device
    model.load_state_dict(trained_head().state_dict(), assign=True)

    def disable() -> Any:
        with lora.disabled(model):
            pass

    for call in (disable, lambda: lora.eject(model)):
        expect_refusal(lora.LayerError, "the original of '2.weight' was on the meta device .* before you inject", model, call)


@pytest.mark.parametrize("mixture", ["factors", "B", "base"])
def test_a_model_in_which_one_layer_holds_no_values_is_not_merged(mixture):
    model = injected(mlp(6, 5, 4))
    put_on_meta(model[2], MIXTURES[mixture])
    for keep in (True, False):
        message = "'2' cannot be merged: .* different devices: .*(lora_[AB]|weight) on meta, .* has yet to be loaded"
        expect_refusal(lora.LayerError, message, model, lambda keep=keep: lora.merge(model, keep=keep))


@pytest.mark.parametrize("kind", every_kind)
def test_a_merged_layer_goes_to_the_meta_device_as_a_whole(kind):
    _, model = KINDS[kind].build()
    lora.merge(model)
    model.to("meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_torch_fx_traces_past_the_checks():
    model = injected(mlp(6, 5, 4))
    x = torch.randn(3, 6)
    graph = torch.fx.Tracer().trace(Flat(model[0]))
    assert close(torch.fx.GraphModule(Flat(model[0]), graph)(x), model[0](x), factor=8)


class Flat(nn.Module):
    """The forward of a layer, with nothing that torch.fx takes for a leaf in it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.inner = layer
        self.W, self.A, self.B, self.b = layer.weight, layer.lora_A, layer.lora_B, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y = lora.ops.add_linear_update(x @ self.W.t() + self.b, x, self.A, self.B, self.inner.scaling)
        return y + 0 * lora.ops.lora_linear(x, self.W, self.b, self.A, self.B, 1.0)
