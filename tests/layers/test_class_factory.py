"""Classes made to measure: one for each mixin and base, however Python lays the base out; they copy and pickle."""

import abc
import copy
import io
import pickle
import typing

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loralib as lora
from kinds import Holder, fill
from loralib import layers
from loralib.layers.class_factory import LoRAClass, can_become, lora_class
from models import Doubling, adopt, close, expect_refusal, same_bits, snapshot

CONFIG = lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["layer"])


T = typing.TypeVar("T")


class Abstract(abc.ABC, nn.Linear):
    pass


class Generic(typing.Generic[T], nn.Linear):
    pass


class Protocol(typing.Protocol):
    def forward(self, x: Tensor) -> Tensor: ...


class OfProtocol(Protocol, nn.Linear):
    def __init__(self, d: int, k: int):
        nn.Linear.__init__(self, d, k)

    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear.forward(self, x)


class Mixin(abc.ABC):  # as quanto's QModuleMixin
    def forward(self, x: Tensor) -> Tensor:
        return self.qforward(x)

    @abc.abstractmethod
    def qforward(self, x: Tensor) -> Tensor: ...


class Quanto(Mixin, nn.Linear):
    def qforward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.sign(), self.bias)


class Slotted(nn.Linear):
    __slots__ = ("note",)


class Meta(type):
    pass


class OfMeta(nn.Linear, metaclass=Meta):
    pass


LAYOUTS = [Abstract, Generic, OfProtocol, Quanto, Slotted, OfMeta, Generic[int]]


@pytest.mark.parametrize("cls", LAYOUTS, ids=str)
def test_a_layer_of_a_class_with_another_layout_is_adapted_like_any_other(cls):
    model, x = Holder(cls(6, 5)), torch.randn(3, 6)
    before, kind = snapshot(model), type(model.layer)
    lora.inject(model, CONFIG)
    y = fill(model)(x)
    assert isinstance(model.layer, kind)
    assert isinstance(model.layer, layers.LinearLoRA)
    assert type(model.layer).__mro__.index(layers.LinearLoRA) < type(model.layer).__mro__.index(kind)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_bits(other(x), y)
        assert type(other.layer) is type(model.layer)
    with lora.merged(model):
        assert close(model(x), y, factor=64)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    assert close(compiled(x), y, factor=64)
    lora.eject(model)
    assert snapshot(model) == before


def test_a_class_can_be_derived_from_the_class_of_such_a_layer():
    model, x = Holder(Abstract(6, 5)), torch.randn(3, 6)
    lora.inject(model, CONFIG)
    y = fill(model)(x)
    model.layer.__class__ = type("Sharded", (type(model.layer),), {})  # as fully_shard does
    assert same_bits(model(x), y)


class Demanding(nn.Linear):
    def __init_subclass__(cls, *, tag: str, **kwargs):
        super().__init_subclass__(**kwargs)


class Final(nn.Linear):
    def __init_subclass__(cls, **kwargs):
        raise RuntimeError("Final is final")


@pytest.mark.parametrize(
    ("cls", "error", "message"),
    [(Demanding, lora.TargetError, "no class can be derived from Demanding"), (Final, RuntimeError, "Final is final")],
)
def test_a_class_that_cannot_be_derived_from_leaves_the_model_as_it_was(cls, error, message):
    model = nn.ModuleDict({"a": nn.Linear(6, 5), "layer": cls(6, 5), "z": nn.Linear(6, 5)})
    expect_refusal(error, message, model, lambda: lora.inject(model, lora.LoRAConfig(r=2)))


def test_a_subclass_gets_one_class_made_to_measure():
    a, b = adopt(Doubling(6, 5)), adopt(Doubling(3, 2))
    assert type(a) is type(b) is lora_class(layers.LinearLoRA, Doubling)
    assert type(a).__name__ == "LoRADoubling"
    assert type(a).__bases__[-1] is Doubling


@pytest.mark.parametrize("merged", [False, True])
def test_a_layer_of_a_class_made_to_measure_can_be_copied_and_pickled(merged):
    layer, x = adopt(Doubling(6, 5)), torch.randn(3, 6)
    if merged:
        layer.merge()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert type(other) is type(layer)
        assert other.merged is merged
        assert same_bits(other(x), layer(x))
        assert type(layers.eject(other)) is Doubling


class Loud(LoRAClass):
    """A mixin."""


class LoudIdentity(Loud, nn.Identity):
    base_class = nn.Identity


class Quiet(LoRAClass):
    """Another one."""


def test_a_class_that_is_written_for_a_mixin_and_a_base_is_the_one():
    assert lora_class(Loud, nn.Identity) is LoudIdentity
    made = lora_class(Quiet, nn.Identity)
    assert made is lora_class(Quiet, nn.Identity)
    assert made is not LoudIdentity
    assert (made.__name__, made.__bases__, made.base_class) == ("LoRAIdentity", (Quiet, nn.Identity), nn.Identity)
    assert made.__doc__ == nn.Identity.__doc__
    assert lora.Linear is lora_class(layers.LinearLoRA, nn.Linear)


def test_a_class_that_is_written_out_is_pickled_by_its_name_and_another_by_its_parts():
    for cls in (LoudIdentity, lora_class(Quiet, nn.Identity)):
        instance = object.__new__(cls)
        instance.note = 3
        again = pickle.loads(pickle.dumps(instance))
        assert type(again) is cls
        assert again.note == 3


@pytest.mark.parametrize("base", [*LAYOUTS[:-1], nn.Linear], ids=str)
def test_an_instance_of_any_base_can_become_one_of_the_class_made_for_it(base):
    made = lora_class(Quiet, base)
    assert can_become(base, made)
    assert not can_become(nn.Identity, int)
    assert made.__mro__.index(Quiet) < made.__mro__.index(base)
    assert lora_class(Quiet, base) is made
