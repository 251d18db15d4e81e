"""Merging: what must not change its result, and what a merged layer computes once its weight is not up to date."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import loralib as lora
from kinds import COPIES, KINDS, agrees, every_kind, fill
from models import bits, close, expect_refusal

BASED_ON_WEIGHTS = [kind for kind in every_kind if "attention" not in kind]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference mode": torch.inference_mode,
    "gradients disabled": torch.no_grad,
    "gradients enabled": torch.enable_grad,
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),
}


def merge_on_eval(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, lora.AdaptedLayer):
            module.merge_weights = True
    model.train()
    model.eval()


def merge_after_disabled(model: nn.Module) -> None:
    lora.merge(model)
    with lora.disabled(model):
        pass


VERBS: dict[str, Callable[[nn.Module], object]] = {
    "merge": lora.merge,
    "merge for good": lambda model: lora.merge(model, keep=False),
    "eval": merge_on_eval,
    "the end of disabled": merge_after_disabled,
}


def in_place(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that the model computes with, factors left out."""
    return {name: p for name, p in model.named_parameters() if "lora_" not in name}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", every_kind)
def test_merging_does_not_depend_on_what_is_set_around_it(kind, verb):
    for dtype in (torch.float32, torch.bfloat16):
        _, model = KINDS[kind].build()
        model.to(dtype)
        usual = copy.deepcopy(model)
        VERBS[verb](usual)
        wanted = {name: bits(p) for name, p in in_place(usual).items()}
        for name, ambient in AMBIENT.items():
            merged = copy.deepcopy(model)
            with ambient():
                VERBS[verb](merged)
            found = in_place(merged)
            assert {key: bits(p) for key, p in found.items()} == wanted, name
            assert all(p.dtype == dtype and not p.is_inference() for p in found.values()), name


@pytest.mark.parametrize("kind", every_kind)
def test_what_an_adapter_adds_does_not_depend_on_what_is_set_around_it(kind):
    _, model = KINDS[kind].build()
    wanted = {name: bits(update.delta()) for name, update in lora.extract(model).layers.items()}
    for name, ambient in AMBIENT.items():
        if name != "default device meta":  # where a state dict is on it as well
            with ambient():
                adapter = lora.extract(model)
                found = {key: update.delta() for key, update in adapter.layers.items()}
            assert {key: bits(delta) for key, delta in found.items()} == wanted, name


# --- a merged weight that is not up to date -------------------------------------------------------------------------


def factors(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if "lora_" in name]


def copied_into(model: nn.Module, other: nn.Module) -> None:
    """As averages follow their model."""
    with torch.no_grad():
        for mine, its in zip(lora.lora_state_dict(model).values(), lora.lora_state_dict(other).values(), strict=True):
            mine.copy_(its)


def assigned(model: nn.Module, other: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, lora.AdaptedLayer):
            its = other.get_submodule(name)
            module.lora_A, module.lora_B = nn.Parameter(its.lora_A.detach()), nn.Parameter(its.lora_B.detach())


def rescaled(model: nn.Module, other: nn.Module) -> None:
    for m in (model, other):
        for module in m.modules():
            if isinstance(module, lora.AdaptedLayer):
                module.scaling = 0.25
    copied_into(model, other)


def without_rank(model: nn.Module, other: nn.Module) -> None:
    for m in (model, other):
        for module in m.modules():
            if isinstance(module, lora.AdaptedLayer):
                module.r = 0


CHANGES = {"in place": copied_into, "assigned": assigned, "scaling": rescaled, "no rank": without_rank}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", every_kind)
def test_a_merged_layer_follows_its_factors(kind, change):
    case = KINDS[kind]
    _, model = case.build()
    x = case.inputs()
    other = fill(copy.deepcopy(model))
    lora.merge(model)
    before = model(*x)
    CHANGES[change](model, other)
    wanted = other(*x)
    assert not close(before, wanted)
    assert agrees(model(*x), wanted.double(), torch.float32, case.terms)
    assert agrees(copy.deepcopy(model)(*x), wanted.double(), torch.float32, case.terms)
    assert agrees(COPIES["pickle"](model)(*x), wanted.double(), torch.float32, case.terms)
    model.train(), model.eval()
    assert agrees(model(*x), wanted.double(), torch.float32, case.terms)
    if change != "no rank":
        lora.merge(model)
        assert not any(m.is_stale() for m in model.modules() if isinstance(m, lora.AdaptedLayer))
        assert agrees(model(*x), wanted.double(), torch.float32, case.terms)


@pytest.mark.parametrize("kind", every_kind)
def test_a_functional_call_of_a_merged_model_computes_with_what_it_is_given(kind):
    case = KINDS[kind]
    _, model = case.build()
    x, wanted = case.inputs(), None
    other = fill(copy.deepcopy(model))
    wanted, others = model(*x).detach(), other(*x).detach()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    its_factors = {name: tensor.requires_grad_() for name, tensor in lora.lora_state_dict(other).items()}
    lora.merge(model)
    merged = model(*x)
    assert agrees(functional_call(model, state, x), wanted.double(), torch.float32, case.terms)
    y = functional_call(model, its_factors, x)
    assert agrees(y, others.double(), torch.float32, case.terms)
    assert all(g is not None for g in torch.autograd.grad(y.sum(), list(its_factors.values()), allow_unused=True))
    present = {name: p.detach() for name, p in model.named_parameters()}
    assert agrees(functional_call(model, present, x), merged.detach().double(), torch.float32, case.terms)
    assert torch.equal(model(*x), merged)


def test_a_model_average_that_is_kept_in_evaluation_mode_follows_its_model():
    model = nn.Sequential(lora.Linear(6, 4, r=2), nn.ReLU(), lora.Linear(4, 3, r=2))
    average, x = copy.deepcopy(model).eval(), torch.randn(5, 6)
    for _ in range(3):
        fill(model)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", lora.MergedStateDictWarning)
            for mine, its in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                mine.copy_(its)
        assert close(average(x), model(x))


# --- what is set from outside ---------------------------------------------------------------------------------------


def test_assigning_the_mode_is_setting_it():
    model = nn.Sequential(lora.Linear(6, 4, r=2), nn.Linear(4, 1))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    assert model[0].merged
    for module, mode in modes.items():  # as Lightning restores the modes after a validation
        module.training = mode
    assert not model[0].merged
    model(torch.ones(2, 6)).sum().backward()
    assert model[0].lora_B.grad is not None
    model[0].training = False
    assert model[0].merged


def test_assigning_the_mode_leaves_alone_what_merge_merged():
    model = nn.Sequential(nn.Linear(6, 4))
    lora.inject(model, lora.LoRAConfig(r=2))
    lora.merge(model)
    model[0].training = False
    model[0].training = True
    assert model[0].merged


@pytest.mark.parametrize("build", [lambda: lora.Linear(6, 4, r=2), lambda: lora.Embedding(7, 4, r=2)])
def test_merged_assigned_by_hand_says_what_the_weight_holds(build):
    layer = fill(build())
    x = torch.randint(6, (3,)) if isinstance(layer, nn.Embedding) else torch.randn(3, 6)
    base, y, W = layer.weight.detach().clone(), layer(x), layer.weight
    delta = layer.update.delta()
    with torch.no_grad():
        layer.weight += delta
    layer.merged = True
    assert close(layer(x), y)
    assert close(layer.train().weight, base)
    assert layer.weight is W
    layer.eval()
    layer.merged = False
    assert layer.weight is W


def test_a_change_in_place_of_a_merged_weight_is_not_lost_in_silence():
    layer = fill(lora.Linear(6, 4, r=2)).eval()
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.warns(UserWarning, match="changed in place, which is lost"):
        layer.train()


def test_a_weight_that_is_resized_while_merged_keeps_the_layer_merged():
    layer = fill(lora.Embedding(7, 4, r=2)).eval()
    layer.weight.data = torch.randn(9, 4)
    expect_refusal(lora.LayerError, "resized while it was merged", layer, layer.train)
    assert layer.merged


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("kind", every_kind)
def test_factors_that_are_not_finite_are_not_merged(kind, factor, value):
    _, model = KINDS[kind].build()
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, lora.AdaptedLayer))
    with torch.no_grad():
        getattr(layer, factor).view(-1)[-1] = value
    for keep in (True, False):
        expect_refusal(lora.LayerError, f"{name}.*{factor} holds .* not finite", model, partial(lora.merge, model, keep=keep))


@pytest.mark.parametrize("keep", [True, False])
def test_a_sum_beyond_float16_is_not_merged(keep):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).half()
    lora.inject(model, lora.LoRAConfig(r=1))
    with torch.no_grad():
        model[1].weight.fill_(60000)
        model[1].lora_A.fill_(100), model[1].lora_B.fill_(100)
    expect_refusal(lora.LayerError, "'1' cannot be merged: .* beyond 65504", model, partial(lora.merge, model, keep=keep))
    model[1].lora_B.data.fill_(1)  # a large sum that still fits
    lora.merge(model, keep=keep)
    assert model[1].weight.isfinite().all()


def test_a_bfloat16_sum_beyond_float16_is_merged():
    model = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    lora.inject(model, lora.LoRAConfig(r=1))
    model[0].lora_A.data.fill_(1000), model[0].lora_B.data.fill_(1000)
    lora.merge(model)
    assert float(model[0].weight.detach().abs().max()) > 65504


def test_tensors_on_different_devices_are_not_merged():
    model = nn.Sequential(nn.Linear(4, 4))
    lora.inject(model, lora.LoRAConfig(r=1))
    model[0].lora_A = nn.Parameter(model[0].lora_A.to("meta"))
    with pytest.raises(lora.LayerError, match=r"different devices: .*lora_A on meta"):
        lora.merge(model)


def test_an_offloaded_weight_is_not_merged_and_one_merged_before_it_was_offloaded_computes_with_its_update():
    accelerate = pytest.importorskip("accelerate")
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(4, 8)
    lora.inject(model, lora.LoRAConfig(r=2))
    wanted = fill(model)(x).detach()
    before, after = copy.deepcopy(model), copy.deepcopy(model)
    accelerate.cpu_offload(before, execution_device="cpu")
    with pytest.raises(lora.LayerError, match="'0' cannot be merged: its weight is offloaded"):
        lora.merge(before)
    with torch.no_grad():
        assert close(before(x), wanted)
    lora.merge(after)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lora.MergedStateDictWarning)  # accelerate takes the state dict
        accelerate.cpu_offload(after, execution_device="cpu")
    with torch.no_grad():
        assert close(after(x), wanted)


# --- factors and ranks that are taken away ----------------------------------------------------------------------------


def test_factors_deleted_from_a_merged_layer_leave_the_merged_weight():
    layer, x = fill(lora.Linear(6, 4, r=2)), torch.randn(3, 6)
    y = layer(x)
    layer.eval()
    del layer.lora_A, layer.lora_B
    for found in (layer, layer.train(), copy.deepcopy(layer).eval()):
        assert close(found(x), y)
    assert sorted(layer.state_dict()) == ["bias", "weight"]


def test_a_layer_without_rank_is_ejected_with_the_others():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    lora.inject(model, lora.LoRAConfig(r=2))
    model[1].r = 0
    lora.eject(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
