"""Running statistics: saved where they are asked for, and never left behind in silence."""

import copy
import warnings

import pytest
import torch
from torch import nn

import loralib as lora
from models import close, injected, same_bits


def network(norm: type[nn.Module] = nn.BatchNorm1d, **kwargs) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), norm(5, **kwargs), nn.Linear(5, 4))


def batch() -> torch.Tensor:
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(1)) * 3 + 1


CONFIG = {"target_modules": ["0", "2"]}
NORMS = [
    (nn.BatchNorm1d, {}),
    (nn.BatchNorm1d, {"momentum": None}),
    (nn.SyncBatchNorm, {}),
    (nn.InstanceNorm1d, {"track_running_stats": True}),
]


@pytest.mark.parametrize(("norm", "kwargs"), NORMS)
@pytest.mark.parametrize("attached", [False, True])
def test_statistics_that_moved_and_are_not_saved_are_named(norm, kwargs, attached):
    model = injected(network(norm, **kwargs), **CONFIG)
    if attached:
        model, adapter = network(norm, **kwargs), lora.extract(model)
        lora.attach(model, adapter)
    lora.extract(model)  # nothing has moved yet
    norm_layer = model[1].train()
    nn.functional.batch_norm(batch()[:, :5], norm_layer.running_mean, norm_layer.running_var, training=True)
    with pytest.warns(UserWarning, match=r"The running statistics of '1' have moved since .* name them in modules_to_save"):
        lora.extract(model)


@pytest.mark.parametrize(("norm", "kwargs"), NORMS)
def test_statistics_that_are_saved_come_back_and_the_output_with_them(norm, kwargs):
    base = network(norm, **kwargs).eval()
    model = injected(copy.deepcopy(base), **CONFIG, modules_to_save=["1"])
    nn.functional.batch_norm(batch()[:, :5], model[1].running_mean, model[1].running_var, training=True)
    model.eval()
    lora.attach(base, lora.extract(model))
    assert same_bits(base[1].running_mean, model[1].running_mean)
    if norm is not nn.InstanceNorm1d:
        assert close(base(batch()), model(batch()), factor=8)


def test_nothing_is_said_of_statistics_that_do_not_move():
    for norm, kwargs in [(nn.BatchNorm1d, {"track_running_stats": False}), (nn.LayerNorm, {})]:
        model = injected(network(norm, **kwargs), **CONFIG)
        model.train()(batch())
        lora.extract(model)
    model = injected(network(), **CONFIG)
    model.train()
    model[1].eval()
    model(batch())
    lora.extract(model)
    model.double().half()
    lora.extract(model)


def test_modes_stay_the_users():
    model = network().train()
    model[1].eval()
    before = [module.training for module in (model, *model)]
    injected(model, **CONFIG, modules_to_save=["1"])
    lora.extract(model)
    assert [module.training for module in (model, *model)] == before


def test_what_moved_is_seen_in_copies_and_in_wrapped_parts_and_forgotten_when_ejected():
    model = injected(network(), **CONFIG)
    model = copy.deepcopy(model)
    model[1] = nn.DataParallel(model[1])
    model.train()(batch())
    with pytest.warns(UserWarning, match="The running statistics of '1' have moved"):
        lora.extract(model)
    lora.eject(model)
    injected(model, **CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora.extract(model)


def test_layers_that_were_removed_meanwhile_have_no_statistics():
    model = injected(network(), target_modules=["2"])
    model[1] = nn.Identity()
    assert list(lora.extract(model).layers) == ["2"]
