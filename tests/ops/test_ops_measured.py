"""The choice between oneDNN and torch's default by timing: what is timed, what stands for a model, and what follows."""

import time

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import loralib as lora
from loralib import ops
from loralib.ops import measured, onednn


@pytest.fixture
def timed(monkeypatch) -> list[tuple[int, int]]:
    """The shapes that are timed; nothing is, and the gain is 2."""
    shapes: list[tuple[int, int]] = []
    monkeypatch.setattr(onednn, "available", lambda: True)
    monkeypatch.setattr(measured, "_gain", lambda shape, threads: shapes.append(shape) or 2.0)
    return shapes


def frozen(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules).requires_grad_(False)


def test_the_shape_that_holds_most_frozen_weights_stands_for_a_model(timed):
    model = frozen(nn.Embedding(2000, 512), nn.Linear(512, 600), *(nn.Linear(512, 512) for _ in range(3)), Conv1D(1024, 512))
    assert measured.gain(model) == 2
    assert timed == [(512, 512)]
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["2", "3"]))
    model[4].requires_grad_(True)
    measured.gain(model)
    assert timed[1:] == [(512, 512)] or timed[1:] == [(512, 1024)]  # as many weights
    model[3].requires_grad_(True)
    measured.gain(model)
    assert timed[2:] == [(512, 1024)]


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(512, 512),  # trained
        frozen(nn.Linear(16, 16)),
        frozen(nn.Linear(512, 512).bfloat16()),
        frozen(nn.Linear(512, 512, device="meta")),
        frozen(nn.Embedding(512, 512)),
        frozen(nn.Conv2d(64, 64, 9)),
        frozen(nn.LayerNorm(200_000)),
        nn.Identity(),
    ],
)
def test_nothing_is_timed_for_a_model_without_frozen_float32_products_of_some_size(timed, model, monkeypatch):
    assert measured.gain(model) is None
    assert not timed
    taken: list[int] = []
    monkeypatch.setattr(onednn, "product", lambda *args: taken.append(1))
    with ops.use("auto", model):
        assert nn.functional.linear(torch.ones(1, 4), torch.eye(4)).tolist() == [[1, 1, 1, 1]]
    assert not taken


def test_without_a_model_a_typical_shape_is_timed(timed):
    assert measured.gain() == 2
    assert timed == [measured.TYPICAL]


def test_a_build_without_onednn_times_nothing(timed, monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: False)
    assert measured.gain() is None
    with ops.use("auto"):
        pass
    assert not timed


@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_auto_takes_the_faster(gain, monkeypatch):
    taken: list[int] = []
    monkeypatch.setattr(onednn, "available", lambda: True)
    monkeypatch.setattr(measured, "_gain", lambda shape, threads: gain)
    monkeypatch.setattr(onednn, "product", lambda x, W, b: taken.append(1) or x @ W.t())
    model = frozen(nn.Linear(512, 512, bias=False))
    x = torch.randn(4, 512)
    with ops.use("auto", model):
        y = model(x)
    assert torch.allclose(y, x @ model[0].weight.t(), atol=1e-4)
    assert bool(taken) == (gain == 2)


@pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")
def test_timing_takes_the_time_it_is_given_once_in_a_process_and_draws_no_random_numbers(monkeypatch):
    measured._gain.cache_clear()
    model, state = frozen(nn.Linear(512, 512)), torch.get_rng_state()
    began = time.perf_counter()
    found = measured.gain(model)
    assert found is not None
    assert found > 0
    assert time.perf_counter() - began >= measured.SECONDS
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(measured, "fastest", lambda *passes: pytest.fail("timed again"))
    assert measured.gain(frozen(nn.Linear(512, 512))) == found


def test_the_fastest_pass_counts(monkeypatch):
    clock = iter([0.0, *[0.0, 0.0, 5.0, 5.0, 6.0], *[0.0, 6.0, 7.0, 7.0, 10.0], *[0.0, 10.0, 13.0, 13.0, 14.0], 99.0])
    monkeypatch.setattr(measured.time, "perf_counter", lambda: next(clock))
    calls: list[str] = []
    assert measured.fastest(lambda: calls.append("a"), lambda: calls.append("b"), within=50.0) == [1.0, 1.0]
    assert "".join(calls) == "abababab"  # the first two to warm up
