"""Whatever wraps a model or its parts: the adapter, its names and the state dict's names are those of the plain model."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper
from torch.optim.swa_utils import AveragedModel

import loralib as lora
from loralib.surgery.wrappers import plain_name, unwrap
from loralib.train.measure import count_parameters
from models import close, expect_refusal, mlp, randomize, same_bits

CONFIG = lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["proj"], modules_to_save=["norm"], bias="lora_only")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).tanh())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.proj, self.head = Block(), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.proj(self.block(x)))


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "checkpoint": checkpoint_wrapper,
    "offload": offload_wrapper,
    "compile": compiled,
    "data parallel": nn.DataParallel,
    "average": AveragedModel,
}
PAIRS = [pair for pair in itertools.product(WRAPPERS, repeat=2) if pair != ("compile", "compile")]  # which torch undoes


def wrap(model: Net, where: str, *hows: str) -> nn.Module:
    """`model` with wrappers around the module `where`, the last of `hows` outermost."""
    module: nn.Module = model.get_submodule(where)
    for how in hows:
        module = WRAPPERS[how](module)
    if not where:
        return module
    owner, _, leaf = where.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
    return model


def injected_net() -> Net:
    torch.manual_seed(0)
    model = Net()
    lora.inject(model, CONFIG)
    randomize(model)
    with torch.no_grad():
        model.block.norm.weight.add_(1)
        model.block.proj.bias.add_(1)
    lora.mark_only_lora_as_trainable(model)
    return model


def same_adapter(a: lora.Adapter, b: lora.Adapter) -> bool:
    tensors = [{**x.tensors, **{f"{n}.{k}": t for n, u in x.layers.items() for k, t in u.tensors().items()}} for x in (a, b)]
    return (
        a.settings == b.settings
        and tensors[0].keys() == tensors[1].keys()
        and all(same_bits(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    )


def check_whole(model: nn.Module, plain: Net) -> None:
    """`model`, with wrappers, must give what `plain`, the same without them, gives."""
    adapter, expected = lora.extract(model), lora.extract(plain)
    assert same_adapter(adapter, expected)
    state, own = lora.lora_state_dict(model), model.state_dict()
    assert state.keys() <= own.keys()
    assert all(state[key].data_ptr() == own[key].data_ptr() for key in state)
    assert {plain_name(model, key) for key in state} == set(lora.lora_state_dict(plain))
    assert count_parameters(model) == count_parameters(plain)
    lora.attach(Net(), adapter)


@pytest.mark.parametrize("where", ["", "block", "block.proj", "block.norm"])
@pytest.mark.parametrize("how", WRAPPERS)
def test_what_is_wrapped_after_injection_loses_nothing(how, where):
    plain = injected_net()
    model = wrap(copy.deepcopy(plain), where, how)
    check_whole(model, plain)
    with torch.no_grad():
        for tensor in lora.lora_state_dict(model).values():
            tensor.zero_()
    lora.attach(model, lora.extract(plain))  # into the layers that are there
    check_whole(model, plain)


@pytest.mark.parametrize("hows", PAIRS, ids="+".join)
def test_wrappers_in_wrappers_lose_nothing(hows):
    plain = injected_net()
    check_whole(wrap(wrap(copy.deepcopy(plain), "block.proj", *hows), "block", *hows), plain)


@pytest.mark.parametrize("where", ["block", "block.proj", "block.norm"])
@pytest.mark.parametrize("how", WRAPPERS)
def test_what_is_wrapped_before_injection_gets_the_same_adapter(how, where):
    source = lora.extract(injected_net())
    torch.manual_seed(0)
    plain = Net()
    model = wrap(copy.deepcopy(plain), where, how)
    assert lora.inject(model, CONFIG) == lora.inject(copy.deepcopy(plain), CONFIG) == ["block.proj", "proj"]
    lora.attach(model, source)
    assert same_adapter(lora.extract(model), source)
    lora.attach(plain, source)
    x = torch.randn(3, 6)
    with torch.no_grad():
        assert close(model(x), plain(x), factor=8)
    base = model.state_dict().keys() - lora.lora_state_dict(model).keys()
    lora.eject(model)
    assert base < model.state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("how", WRAPPERS)
def test_disabled_merge_and_eject_reach_through_wrappers(how):
    torch.manual_seed(0)
    base, x = Net(), torch.randn(3, 6)
    expected = base(x)
    model = copy.deepcopy(base)
    lora.inject(model, CONFIG)
    randomize(model)
    model.block.norm.weight.add_(1)
    wrap(model, "block", how)
    y = model(x)
    with lora.disabled(model):
        assert close(model(x), expected, factor=8)
    with lora.merged(model):
        assert close(model(x), y, factor=64)
    lora.eject(model)
    assert close(model(x), expected, factor=8)
    assert unwrap(model.block).norm.weight.eq(1).all()


def test_a_wrapper_of_a_saved_module_is_saved_by_the_name_of_what_it_wraps():
    model = wrap(Net(), "head", "compile")
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["proj"], modules_to_save=["head"]))
    assert set(lora.extract(model).tensors) == {"head.weight", "head.bias"}
    assert {key for key in lora.lora_state_dict(model) if "lora_" not in key} == {
        "head._orig_mod.weight",
        "head._orig_mod.bias",
    }


def test_a_child_that_is_only_called_as_a_wrapper_calls_its_own_keeps_its_name():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = mlp(6, 5, 4)

    model = Holder()
    assert lora.inject(nn.DataParallel(model), lora.LoRAConfig(r=2)) == ["module.0", "module.2"]
    assert next(iter(lora.lora_state_dict(nn.DataParallel(model)))) == "module.module.0.lora_A"
    assert list(lora.extract(nn.DataParallel(model)).layers) == ["module.0", "module.2"]


def drop_norm(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}norm.")]:
        del state[key]


def rename_proj(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}proj.")]:
        state[key.replace("proj.", "projection.")] = state.pop(key)


@pytest.mark.parametrize(("hook", "lost"), [(drop_norm, "block.norm.bias"), (rename_proj, "block.proj.bias")])
def test_what_is_trained_and_not_in_the_state_dict_is_refused(hook, lost):
    plain, model = injected_net(), injected_net()
    model.block.register_state_dict_post_hook(hook)
    message = f"'{lost}' is trained, but not in the model's state_dict"
    expect_refusal(lora.LayerError, message, model, lambda: lora.lora_state_dict(model))
    assert same_adapter(lora.extract(model), lora.extract(plain))  # which does not go by it


def test_a_file_of_0_1_is_loaded_into_a_model_with_wrappers(tmp_path):
    plain = injected_net()
    torch.save(plain.state_dict(), tmp_path / "whole.pt")
    model = injected_net()
    with torch.no_grad():
        model.proj.lora_B.zero_()
    wrap(model, "block", "compile")
    lora.load_legacy(model, tmp_path / "whole.pt")
    check_whole(model, plain)
