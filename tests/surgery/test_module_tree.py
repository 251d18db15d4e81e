"""The modules of a model by their plain names, wrappers left out, and the places of its tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from loralib.surgery.module_tree import Slot, join, own_parameters, persistent_buffers, slot_of, walk
from loralib.surgery.wrappers import unwrap
from models import Encoder, Tied, mlp, snapshot

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: nn.ModuleDict({"_orig_mod": model}),
    "averaged": AveragedModel,
    "checkpointed": checkpoint_wrapper,
    "parallel": nn.DataParallel,
    "two": lambda model: nn.DataParallel(checkpoint_wrapper(model)),
}


def test_empty_parts_of_a_name_vanish():
    assert [join("", "a", "weight"), join("a", "", "b"), join("", ""), join()] == ["a.weight", "a.b", "", ""]


@pytest.mark.parametrize("make", [Encoder, Tied, lambda: mlp(4, 3, 2), lambda: nn.Linear(2, 2)])
def test_a_plain_model_is_walked_as_torch_walks_it(make):
    model = make()
    tree = walk(model)
    assert tree.places == list(model.named_modules(remove_duplicate=False))
    assert tree.wrappers == []


def test_a_child_that_is_none_is_no_place():
    model = mlp(4, 3, 2)
    model.register_module("nothing", None)
    assert walk(model).places == list(model.named_modules(remove_duplicate=False))


@pytest.mark.parametrize("how", WRAPPERS)
def test_names_are_those_without_the_wrappers(how):
    plain = nn.Sequential(mlp(4, 3, 2), nn.ModuleDict({"deep": mlp(3, 2)}))
    expected = [(name, type(module)) for name, module in plain.named_modules(remove_duplicate=False)]
    plain[0], plain[1]["deep"] = WRAPPERS[how](plain[0]), WRAPPERS[how](plain[1]["deep"])
    tree = walk(WRAPPERS[how](plain))
    assert [(name, type(module)) for name, module in tree.places] == expected
    count = 2 if how == "two" else 1
    assert [name for name, _ in tree.wrappers] == [name for name in ("", "0", "1.deep") for _ in range(count)]
    assert all(unwrap(wrapper) is dict(tree.places)[name] is not wrapper for name, wrapper in tree.wrappers)


def holding() -> nn.Module:
    module = mlp(3, 2)
    module.weight = nn.Parameter(torch.ones(2))
    module.register_parameter("bias", None)
    module.register_buffer("count", torch.tensor(3))
    module.register_buffer("scratch", torch.ones(1), persistent=False)
    module.register_buffer("nothing", None)
    return module


def test_the_tensors_of_a_module_itself_are_those_of_its_state_dict():
    module = holding()
    own = own_parameters(module) | persistent_buffers(module)
    assert list(own) == [key for key in module.state_dict() if "." not in key] == ["weight", "count"]
    assert own["weight"] is module.weight
    assert own["count"] is module.count


@pytest.mark.parametrize("leaf", ["weight", "count", "scratch"])
def test_a_tensor_is_put_in_its_place_and_the_one_before_comes_back(leaf):
    module = holding()
    before, old = snapshot(module), getattr(module, leaf)
    slot, new = Slot(module, leaf), nn.Parameter(torch.zeros(2))
    assert slot.tensor is old
    assert slot.put(new) is old
    assert slot.tensor is getattr(module, leaf) is new
    assert slot.put(old) is new
    assert snapshot(module) == before


@pytest.mark.parametrize("how", WRAPPERS)
def test_a_place_is_found_by_the_name_in_the_plain_model(how):
    inner = WRAPPERS[how](mlp(3, 2))
    model = WRAPPERS[how](nn.ModuleDict({"a": inner}))
    slot = slot_of(model, "a.0.weight")
    assert isinstance(slot.module, nn.Linear)
    assert slot.tensor is slot.module.weight
    assert any(slot.tensor is parameter for parameter in model.parameters())
    assert slot_of(nn.Linear(2, 2), "bias").leaf == "bias"
