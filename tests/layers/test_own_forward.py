"""Linear layers whose forward is not W·x + b, or is W·x + b and says so."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loralib as lora
from kinds import Activated, Holder, Normalized, fill
from loralib import layers
from models import close, expect_refusal, same_bits, snapshot
from peers import library

CONFIG = lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["layer"])


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.5, self.bias)


class Masked(nn.Linear):
    def forward(self, x: Tensor, mask: Tensor | float = 0.5) -> Tensor:
        return super().forward(x) * mask


class Cast(nn.Linear):
    """W·x + b, by another way."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class Router(nn.Linear):
    """A layer that returns more than what it computes of its input."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = super().forward(x)
        return scores.softmax(-1), scores.argmax(-1)


class Stateful(nn.Linear):
    """A layer that counts what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = vars(self).get("seen", 0) + len(x)
        return super().forward(x) * 2


def bitnet() -> nn.Linear:
    layer = library("transformers.integrations.bitnet").AutoBitLinear(6, 5, online_quant=True)
    torch.nn.init.normal_(layer.weight)
    return layer


def quantization_aware() -> nn.Linear:
    fake = torch.ao.quantization
    config = fake.QConfig(activation=nn.Identity, weight=fake.default_weight_fake_quant)
    layer = torch.ao.nn.qat.Linear(6, 5, qconfig=config)
    layer(torch.zeros(1, 6))  # which makes it look at the weight
    return layer.apply(fake.disable_observer)


FOREIGN = {
    "normalized": lambda: Normalized(6, 5),
    "scaled": lambda: Scaled(6, 5),
    "activated": lambda: Activated(6, 5),
    "masked": lambda: Masked(6, 5),
    "cast": lambda: Cast(6, 5),
    "counting": lambda: Stateful(6, 5),
    "BitNet": bitnet,
    "quantization-aware": quantization_aware,
}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == "BitNet" else k for k in FOREIGN])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@torch.compiler.set_stance("force_eager")  # BitNet's functions are compiled, which takes a minute
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min")
def test_a_layer_with_a_forward_of_its_own_computes_the_same_merged_and_unmerged(kind):
    model, x = Holder(FOREIGN[kind]()).eval(), torch.randn(3, 6)
    plain, before = copy.deepcopy(model), snapshot(model)
    lora.inject(model, CONFIG)
    fresh = model(x)
    assert same_bits(fresh, plain(x))
    fill(model)
    y = model(x)
    with torch.no_grad():
        plain.layer.weight.copy_(model.layer.update.effective_weight(plain.layer.weight))
    assert close(y, plain(x), factor=64)
    assert not close(y, fresh, factor=64)
    y.sum().backward()
    assert model.layer.lora_A.grad is not None
    with lora.merged(model):
        assert close(model(x), y, factor=64)
    with lora.disabled(model):
        assert same_bits(model(x), fresh)
    model.zero_grad()
    lora.eject(model)
    if kind != "counting":  # whose forward writes on the layer
        assert snapshot(model) == before


def test_other_arguments_of_the_forward_are_passed_on():
    model, x = Holder(Masked(6, 5)), torch.randn(3, 6)
    lora.inject(model, CONFIG)
    fill(model)
    mask = torch.rand(3, 5)
    assert close(model(x, mask), 2 * mask * model(x), factor=16)
    assert same_bits(model(x, mask=mask), model(x, mask))


def test_what_the_forward_writes_on_the_layer_stays():
    model = Holder(Stateful(6, 5))
    lora.inject(model, CONFIG)
    for _ in range(2):
        model(torch.ones(3, 6))
    assert model.layer.seen == 6


def test_dropout_cannot_act_there_and_the_refusal_says_what_to_do():
    model = Holder(Scaled(6, 5))
    config = lora.LoRAConfig(r=2, target_modules=["layer"], lora_dropout=0.1)
    message = r"lora_dropout=0.1 cannot act in it.*if the forward of Scaled is W·x \+ b, register_layer"
    expect_refusal(lora.TargetError, message, model, lambda: lora.inject(model, config))


class Declared(nn.Linear):
    """W·x + b by a way of its own, and registered as that."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t() + self.bias


class OfDeclared(Declared):
    """One that has its forward from a registered class."""


class NotDeclared(Declared):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


lora.register_layer(Declared, layers.LinearLoRA)


@pytest.mark.parametrize("cls", [nn.Linear, Declared, OfDeclared])
def test_a_class_that_is_registered_as_affine_adds_the_update_and_drops_out(cls):
    model, x = Holder(cls(6, 5)), torch.randn(3, 6)
    y = model(x)
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["layer"], lora_dropout=0.5))
    fill(model).eval()
    assert not model.layer.by_weight
    assert close(model(x), y + F.linear(x, model.layer.update.delta()), factor=16)
    assert not close(model.train()(x), model.eval()(x))


def test_a_class_with_a_forward_of_its_own_above_a_registered_one_is_not_affine():
    model, x = Holder(NotDeclared(6, 5)), torch.randn(3, 6)
    lora.inject(model, CONFIG)
    y = fill(model)(x)
    with lora.merged(model):
        assert close(model(x), y, factor=16)


@pytest.mark.parametrize("cls", [Declared, Normalized, nn.Linear])
def test_slices_are_adapted_in_such_layers_too(cls):
    model, x = Holder(cls(6, 6)), torch.randn(3, 6)
    config = {"r": 2, "target_modules": ["layer"], "enable_lora": [True, False, True]}
    lora.inject(model, lora.LoRAConfig(**config))
    y = fill(model)(x)
    with lora.merged(model):
        assert close(model(x), y, factor=64)


def test_an_injected_layer_of_torchs_own_class_stays_on_the_fast_path():
    model = Holder(nn.Linear(6, 5))
    lora.inject(model, CONFIG)
    assert model.layer.base_is_affine()
    assert "by_weight" not in vars(model.layer)


# --- what cannot be replaced, and what returns no tensor --------------------------------------------------------------


class Packed(nn.Parameter):
    """A weight of a class of its own, as torchao's quantized ones are."""


class Quantized(nn.Linear):
    """A quantized layer: its forward restores what its weight stands for."""

    def __init__(self, d: int, k: int):
        super().__init__(d, k)
        self.weight = Packed((8 * self.weight.detach()).round(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / 8, self.bias)


class QuantizedRouter(Quantized):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


def test_to_a_quantized_layer_the_update_is_added():
    layer, x = Quantized(6, 5), torch.randn(3, 6)
    y = layer(x)
    update = lora.LoRAUpdate(torch.randn(2, 6), torch.randn(5, 2), lora_alpha=3)
    layers.adopt(layer, update)
    assert not layer.by_weight
    assert close(layer(x), y + F.linear(x, update.delta()), factor=64)
    with pytest.raises(lora.LayerError, match="its weight is a Packed, and only plain tensors can be merged"):
        layer.merge()


def test_a_router_computes_with_the_effective_weight():
    layer, x = Router(6, 5), torch.randn(3, 6)
    layers.adopt(layer, lora.LoRAUpdate(torch.randn(2, 6), torch.randn(5, 2), lora_alpha=3))
    (scores, chosen), plain = layer(x), Router(6, 5)
    plain.weight, plain.bias = nn.Parameter(layer.update.effective_weight(layer.weight)), layer.bias
    assert close(scores, plain(x)[0], factor=64)
    assert torch.equal(chosen, plain(x)[1])


def test_an_update_that_is_to_be_added_to_several_tensors_is_an_error_that_says_so():
    layer = QuantizedRouter(6, 5)
    layers.adopt(layer, lora.LoRAUpdate(torch.randn(2, 6), torch.randn(5, 2), lora_alpha=3))
    with pytest.raises(lora.LayerError, match=r"LoRAQuantizedRouter\(.*\) returns a tuple, to which no update can be added"):
        layer(torch.randn(3, 6))
