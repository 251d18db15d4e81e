"""What `state_dict()` of a merged model holds, who says so, and how to get the merged weights."""

import copy
import io
import threading
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import loralib as lora
from kinds import KINDS, agrees, every_kind, fill
from models import bits, close, injected, mlp, trained_head


def merged_model() -> nn.Sequential:
    model = fill(injected(mlp(6, 5, 4)))
    lora.merge(model)
    return model


@pytest.mark.parametrize("make", [lambda: fill(nn.Sequential(lora.Linear(6, 4, r=2))).eval(), merged_model])
def test_the_state_dict_of_a_merged_model_says_what_it_holds(make):
    model = make()
    with pytest.warns(lora.MergedStateDictWarning, match="merged_state_dict"):
        state = model.state_dict()
    assert any("lora_A" in name for name in state)
    with pytest.warns(lora.MergedStateDictWarning):
        torch.save(model.state_dict(), io.BytesIO())


def test_one_warning_is_shown_for_a_model_of_many_layers():
    model = merged_model()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        model.state_dict()
    assert len(shown) == 1


def test_nobody_is_warned_who_knows_what_it_holds():
    model = merged_model()
    lora.lora_state_dict(model)
    lora.extract(model)
    lora.merged_state_dict(model)
    copy.deepcopy(model)
    torch.save(model, io.BytesIO())
    model.half().float()
    lora.unmerge(model)
    model.state_dict()


def test_the_warning_of_another_thread_is_not_lost():
    model, other, caught = merged_model(), merged_model(), []

    def extract() -> None:
        for _ in range(20):
            lora.extract(other)

    thread = threading.Thread(target=extract)
    thread.start()
    for _ in range(20):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            model.state_dict()
        caught.append(len(found))
    thread.join()
    assert all(caught)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", every_kind)
def test_the_merged_state_dict_makes_a_plain_model_compute_the_same(kind, merged):
    case = KINDS[kind]
    plain, model = case.build()
    x = case.inputs()
    wanted = model(*x).detach().double()
    if merged:
        lora.merge(model)
    before = {name: (id(p), bits(p)) for name, p in model.named_parameters()}
    state = lora.merged_state_dict(model)
    assert {name: (id(p), bits(p)) for name, p in model.named_parameters()} == before
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state)
    if all(getattr(m, "max_norm", None) is None for m in plain.modules()):  # which would undo the update
        assert agrees(plain(*x), wanted, torch.float32, case.terms)


def test_the_merged_state_dict_holds_what_was_trained_in_full():
    model = trained_head()
    state = lora.merged_state_dict(model)
    assert bits(state["2.weight"]) == bits(model[2].weight)
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_the_merged_state_dict_of_a_merged_layer_is_up_to_date():
    model = merged_model()
    fill(model)
    wanted = copy.deepcopy(model)
    lora.unmerge(wanted)
    assert close(lora.merged_state_dict(model)["0.weight"], lora.merged_state_dict(wanted)["0.weight"])


def test_there_is_no_merged_state_dict_of_a_model_without_lora_nor_of_a_disabled_one():
    with pytest.raises(lora.LayerError, match="no layer with a LoRA update"):
        lora.merged_state_dict(nn.Sequential(nn.Linear(2, 2)))
    model = merged_model()
    with lora.disabled(model), pytest.raises(lora.LayerError, match="inside a `disabled` block"):
        lora.merged_state_dict(model)


@pytest.mark.parametrize("wrap", ["compiled", "averaged", "a part compiled"])
def test_the_merged_state_dict_of_a_wrapped_model_has_the_plain_model_s_names(wrap):
    model = fill(injected(mlp(6, 5, 4)))
    wanted = lora.merged_state_dict(model)
    if wrap == "a part compiled":
        model[0] = torch.compile(model[0], backend="eager")
    compiled = partial(torch.compile, backend="eager")
    wrapped = {"compiled": compiled, "averaged": torch.optim.swa_utils.AveragedModel}.get(wrap, lambda m: m)(model)
    found = lora.merged_state_dict(wrapped)
    assert [name for name in found if name != "n_averaged"] == list(wanted)
    assert all(bits(found[name]) == bits(tensor) for name, tensor in wanted.items())
