"""Layers of your own: what `register_layer` takes, and that everything works on what it was told."""

import copy

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from kinds import COPIES, Holder, agrees, fill
from loralib import layers
from models import bits, close, expect_refusal, same_bits, snapshot
from peers import library


class Scale(nn.Module):
    """y = W ⊙ x."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(height, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class ScaleLoRA(lora.AdaptedLayer):
    @classmethod
    def factor_shapes(cls, layer, r, **structure):
        height, width = layer.weight.shape
        return (r, width), (height, r)

    def effective_weight(self, W):
        return W + self.scaling * self.lora_B @ self.lora_A


class SlowLinear(nn.Linear):
    """A linear layer for which another treatment than its parent's is registered."""


class SlowLinearLoRA(layers.LinearLoRA):
    forward = lora.AdaptedLayer.forward


lora.register_layer(Scale, ScaleLoRA)
lora.register_layer(SlowLinear, SlowLinearLoRA)

CONFIG = lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["layer"])


def scaled(**config) -> Holder:
    model = Holder(Scale(3, 4))
    lora.inject(model, lora.LoRAConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["layer"]} | config))
    return fill(model)


def test_everything_works_on_a_registered_layer():
    model, x = Holder(Scale(3, 4)), torch.randn(2, 3, 4)
    before, base = snapshot(model), bits(model.layer.weight)
    assert lora.inject(model, CONFIG) == ["layer"]
    assert isinstance(model.layer, Scale)
    assert type(model.layer).__name__ == "LoRAScale"
    fill(model)
    W = model.layer.weight.double() + 1.5 * model.layer.lora_B.double() @ model.layer.lora_A.double()
    y = model(x)
    assert agrees(y, W * x, torch.float32)
    y.sum().backward()
    assert model.layer.lora_A.grad is not None
    assert model.layer.weight.grad is not None
    model.zero_grad()
    with lora.merged(model):
        assert close(model(x), y, factor=4)
    with lora.disabled(model):
        assert same_bits(model(x), model.layer.weight * x)
    assert bits(model.layer.weight) == base
    adapter = lora.extract(model)
    assert type(adapter.layers["layer"]) is lora.LoRAUpdate
    assert close(adapter.delta("layer"), (W - model.layer.weight).float(), factor=4)
    fresh = copy.deepcopy(model)
    lora.eject(fresh)
    lora.attach(fresh, adapter)
    assert same_bits(fresh(x), y)
    lora.merge(fresh, keep=False)
    assert type(fresh.layer) is Scale
    assert list(fresh.state_dict()) == ["layer.weight"]
    assert close(fresh(x), y, factor=4)
    lora.eject(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("merged", [False, True])
def test_a_registered_layer_can_be_copied(how, merged):
    model, x = scaled(), torch.randn(3, 4)
    if merged:
        lora.merge(model)
    other = COPIES[how](model)
    assert same_bits(other(x), model(x))
    assert other.layer.merged is merged


def test_a_class_derived_from_a_registered_one_is_treated_like_it():
    class Shifted(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model, x = Holder(Shifted(3, 4)), torch.randn(3, 4)
    lora.inject(model, CONFIG)
    fill(model)
    y = model(x)
    assert close(y, model.layer.effective_weight(model.layer.weight) * x + 1, factor=4)
    with lora.merged(model):
        assert close(model(x), y, factor=4)


def test_a_class_derived_from_a_known_one_may_have_a_treatment_of_its_own():
    model, x = nn.ModuleDict({"own": SlowLinear(4, 3), "plain": nn.Linear(4, 3)}), torch.randn(2, 4)
    assert lora.inject(model, lora.LoRAConfig(r=2)) == ["own", "plain"]
    fill(model)
    assert isinstance(model["own"], SlowLinearLoRA)
    assert not isinstance(model["plain"], SlowLinearLoRA)
    y = model["own"](x)
    lora.merge(model)
    assert close(model["own"](x), y, factor=16)
    lora.eject(model)
    assert [type(m) for m in model.values()] == [SlowLinear, nn.Linear]


def test_registering_the_same_pair_again_changes_nothing():
    lora.register_layer(Scale, ScaleLoRA)
    assert layers.handler_of(Scale) is ScaleLoRA


class Other(ScaleLoRA):
    """Another treatment."""


class Silent(lora.AdaptedLayer):
    """A treatment that says nothing of the layers that it is for."""


@pytest.mark.parametrize(
    ("layer_class", "treatment", "message"),
    [
        (Scale, Other, "Scale layers have another handler already"),
        (nn.Linear, Other, "Linear layers have another handler already"),
        (nn.Embedding, Other, "Embedding layers have another handler already"),
        (Scale(1, 1), ScaleLoRA, "is not a subclass of Module"),
        ("Scale", ScaleLoRA, "'Scale' is not a subclass of Module"),
        (int, ScaleLoRA, "is not a subclass of Module"),
        (Scale, nn.Linear, "is not a subclass of AdaptedLayer"),
        (Scale, None, "None is not a subclass of AdaptedLayer"),
        (list[int], ScaleLoRA, "is not a subclass of Module"),
    ],
)
def test_what_cannot_be_registered_is_refused(layer_class, treatment, message):
    with pytest.raises(lora.ConfigError, match=message):
        lora.register_layer(layer_class, treatment)
    assert layers.handler_of(Scale) is ScaleLoRA


@pytest.mark.parametrize("base", ["Conv2d", "transformers"])
def test_a_kind_that_is_known_by_another_row_of_the_table_has_a_treatment_already(base):
    cls = nn.Conv2d if base == "Conv2d" else library("transformers.pytorch_utils").Conv1D
    known = layers.handler_of(cls)
    with pytest.raises(lora.ConfigError, match="have another handler already"):
        lora.register_layer(cls, Other)
    assert layers.handler_of(cls) is known


def test_a_treatment_that_says_nothing_is_refused():
    class Unknown(nn.Module):
        pass

    with pytest.raises(lora.ConfigError, match="factor_shapes"):
        lora.register_layer(Unknown, Silent)


def test_what_the_forward_of_a_registered_layer_writes_on_it_stays():
    class Counting(Scale):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    model = Holder(Counting(3, 4))
    lora.inject(model, CONFIG)
    for _ in range(3):
        model(torch.ones(3, 4))
    assert model.layer.calls == 3
    lora.eject(model)
    assert model.layer.calls == 3


def test_dropout_is_refused_where_the_update_is_added_to_the_weight():
    model = Holder(Scale(3, 4))
    call = lambda: scaled_with(model, lora_dropout=0.1)  # noqa: E731
    message = "'layer' .* lora_dropout=0.1 cannot act in it, since its update is added to its weight; exclude it or use 0"
    expect_refusal(lora.TargetError, message, model, call)


def scaled_with(model: nn.Module, **config) -> None:
    lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["layer"]} | config))


def test_an_adapter_of_another_shape_does_not_fit():
    adapter = lora.extract(scaled())
    for model in (Holder(Scale(4, 4)), Holder(Scale(3, 5))):
        message = r"layer: lora_[AB] \(.*\) in the adapter, \(.*\) in the model"
        expect_refusal(lora.AttachError, message, model, lambda m=model: lora.attach(m, adapter))


class Weightless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class WeightlessLoRA(ScaleLoRA):
    pass


lora.register_layer(Weightless, WeightlessLoRA)


@pytest.mark.parametrize("weight", ["none", "missing", "integer", "complex"])
def test_a_registered_layer_without_a_weight_that_can_be_updated_is_refused(weight):
    layer = Weightless()
    if weight == "none":
        layer.register_parameter("weight", None)
    elif weight != "missing":
        dtype = torch.int8 if weight == "integer" else torch.complex64
        layer.weight = nn.Parameter(torch.zeros(2, 2, dtype=dtype), requires_grad=False)
    model = Holder(layer)
    expect_refusal(lora.TargetError, "'layer' of Holder cannot be adapted: its? .*weight", model, lambda: scaled_with(model))


def test_a_registered_layer_compiles_and_exports():
    torch._dynamo.reset()
    model, x = scaled(), torch.randn(3, 4)
    y = model(x)
    assert close(torch.compile(model, fullgraph=True, backend="eager")(x), y)
    assert close(torch.export.export(model.eval(), (x,)).module()(x), y)
