"""A model is read once a call, as torch itself would read it; and whatever is refused, nothing about it changes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import loralib as lora
from loralib.surgery.survey import Survey
from models import Encoder, Tied, expect_refusal, injected, mlp, snapshot, trained_head


class Watched(dict[str, Any]):
    """The children, or the parameters, of a module, which count how often they are listed and note what is replaced."""

    def __init__(self, held: dict[str, Any]):
        super().__init__(held)
        self.listed, self.replaced = 0, []

    def items(self) -> Any:
        self.listed += 1
        return super().items()

    def __setitem__(self, name: str, value: Any) -> None:
        self.replaced.append(name)
        super().__setitem__(name, value)


def watched(model: nn.Module) -> Watched:
    children = model._modules = Watched(model._modules)
    return children


CALLS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object]]] = {
    "inject": (Encoder, lambda model: lora.inject(model, lora.LoRAConfig(r=2, bias="all", modules_to_save=["norm"]))),
    "attach": (lambda: mlp(6, 5, 4), lambda model: lora.attach(model, lora.extract(trained_head()))),
    "attach again": (trained_head, lambda model: lora.attach(model, lora.extract(trained_head()))),
    "mark": (trained_head, lora.mark_only_lora_as_trainable),
    "eject": (trained_head, lora.eject),
    "merge": (trained_head, lora.merge),
    "merge for good": (trained_head, lambda model: lora.merge(model, keep=False)),
    "unmerge": (trained_head, lora.unmerge),
    "extract": (lambda: injected(mlp(6, 5, 4)), lora.extract),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_model_is_read_once(call):
    make, act = CALLS[call]
    model = make()
    children = watched(model)
    act(model)
    assert children.listed == 1


@pytest.mark.parametrize("block", [lora.merged, lora.disabled])
def test_a_model_is_read_once_for_a_block(block):
    model = trained_head()
    children = watched(model)
    with block(model):
        pass
    assert children.listed == 1


def models() -> Iterator[nn.Module]:
    yield from (Encoder(), Tied(), trained_head(), nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16)), nn.Linear(2, 2))
    shared = nn.BatchNorm1d(3)
    yield nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Dropout()), "none": nn.Identity()})


@pytest.mark.parametrize("model", list(models()), ids=lambda model: type(model).__name__)
def test_a_survey_names_what_torch_names(model):
    model.register_module("nothing", None)
    read = Survey(model)
    assert list(read.modules.items()) == list(model.named_modules())
    assert read.places == list(model.named_modules(remove_duplicate=False))
    assert list(read.parameters.items()) == list(model.named_parameters(remove_duplicate=False))
    assert {name: id(tensor) for name, tensor in read.tensors.items()} == {
        name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()
    }
    assert all(read.slots[name].tensor is tensor for name, tensor in read.tensors.items())


def test_the_projections_of_an_attention_are_sites_and_become_no_modules():
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    before, read = snapshot(model), Survey(model)
    assert list(read.sites) == ["", "0", "0.q_proj", "0.k_proj", "0.v_proj", "0.out_proj", "1"]
    assert read.sites["0.k_proj"] is read.sites["0.k_proj"]
    assert snapshot(model) == before


# --- refusals change nothing ----------------------------------------------------------------------------------------


WRONG = {
    "target_modules": st.sampled_from([["qurey"], ["query", "norm"], ["encoder"], [], "(", r"encoder\.9.*", ["query", ""]]),
    "exclude_modules": st.sampled_from([["kee"], r".*", "(", ["query", "key", "proj"]]),
    "modules_to_save": st.sampled_from([["head"], ["encoder"], ["query"], ["proj", "none"]]),
    "rank_pattern": st.sampled_from([{"kee": 3}, {r"encoder\.9\..*": 3}]),
    "alpha_pattern": st.sampled_from([{"kee": 3}, {"norm": 3}]),
    "enable_lora": st.sampled_from([[True] * 4, {"query": [True, False, False, True]}, {"kee": [True]}]),
    "slice_widths": st.sampled_from([{"query": [1, 2]}, {"query": [6], "kee": [6]}]),
    "fan_in_fan_out": st.just(True),
}


some_wrong = st.lists(st.sampled_from(sorted(WRONG)), min_size=1, max_size=3, unique=True)


@given(some_wrong.flatmap(lambda fields: st.fixed_dictionaries({f: WRONG[f] for f in fields})), st.booleans())
def test_a_refused_injection_leaves_model_and_random_numbers_as_they_were(fields, adapted):
    model = Encoder()
    if adapted:
        injected(model, target_modules=["encoder.proj"], bias="all", modules_to_save=["norm"])
    before = snapshot(model)
    numbers = torch.get_rng_state()
    with pytest.raises((lora.TargetError, lora.ConfigError)):
        lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["query", "key"]} | fields))
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), numbers)


def other_rows(adapter: lora.Adapter) -> lora.Adapter:
    rows = {"0.weight": lora.TokenRows((99,), torch.zeros(1, 6))}
    return lora.Adapter(adapter.config, adapter.layers, adapter.tensors, rows=rows)


def without_layers(adapter: lora.Adapter) -> lora.Adapter:
    return lora.Adapter(adapter.config, {}, adapter.tensors)


def with_magnitude(adapter: lora.Adapter) -> lora.Adapter:
    layers = {n: lora.LoRAUpdate(u.A, u.B, u.lora_alpha, magnitude=torch.ones(len(u.B))) for n, u in adapter.layers.items()}
    return lora.Adapter(adapter.config, layers, adapter.tensors)


UNFIT: dict[str, tuple[Callable[[], nn.Module], Callable[[lora.Adapter], lora.Adapter]]] = {
    "other widths": (lambda: mlp(7, 5, 4), lambda adapter: adapter),
    "a shorter model": (lambda: mlp(6, 5), lambda adapter: adapter),
    "another kind of layer": (lambda: nn.Sequential(nn.Conv1d(6, 5, 1), nn.ReLU(), nn.Linear(5, 4)), lambda adapter: adapter),
    "other names": (lambda: mlp(6, 5, 4), lambda adapter: adapter.rename({"0": "1", "2": "3"})),
    "rows that are not there": (lambda: mlp(6, 5, 4), other_rows),
    "DoRA": (lambda: mlp(6, 5, 4), with_magnitude),
    "another rank": (lambda: injected(mlp(6, 5, 4), target_modules=["0"], modules_to_save=["2"], r=3), lambda adapter: adapter),
    "other layers": (lambda: injected(mlp(6, 5, 4), target_modules=["2"]), lambda adapter: adapter),
    "nothing for an adapted layer": (trained_head, without_layers),
    "more trained in the model": (
        lambda: injected(mlp(6, 5, 4), target_modules=["0"], modules_to_save=["2"], bias="all"),
        lambda adapter: adapter,
    ),
}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("case", UNFIT)
def test_a_refused_attachment_leaves_the_model_as_it_was(case, merged):
    make, change = UNFIT[case]
    model, adapter = make(), change(lora.extract(trained_head()))
    if merged and Survey(model).adapted:
        lora.merge(model)
    expect_refusal(lora.AttachError, "Nothing was changed", model, lambda: lora.attach(model, adapter))


@pytest.mark.parametrize("call", [lora.eject, lambda model: lora.merge(model, keep=False)], ids=["eject", "merge"])
def test_a_model_with_one_layer_that_cannot_be_ejected_is_left_as_it_was(call):
    model = injected(mlp(6, 5, 4), modules_to_save=[], bias="all")
    model[2].forward = model[2].forward
    expect_refusal(lora.LayerError, "'2' cannot be .*Nothing was changed", model, lambda: call(model))
