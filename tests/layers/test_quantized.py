"""Updates on quantized layers: added to what they compute, merged into a dense weight or quantized again, and taken back."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import loralib as lora
from models import expect_refusal
from quantized_kinds import KINDS, REFUSED, TAKEN, D, K, adapted, linear, model_of

DENSE_ONLY = ("bitsandbytes int8",)
SAME = [kind for kind in TAKEN if kind not in DENSE_ONLY]


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(5, 32, dtype=dtype, requires_grad=True)


def dense(model: Any) -> Tensor:
    """The weight that the quantized layer computes with: what it makes of the unit vectors."""
    layer, b = model[1], model[1].bias
    with lora.disabled(model):
        y: Tensor = layer(torch.eye(D, requires_grad=True))
    W = y.detach() if b is None else y.detach() - b.detach()
    return W.t().double()


def expected(model: Any, W: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    h = F.linear(x, model[0].weight.double(), model[0].bias.double())
    return F.linear(h, W + model[1].scaling * B @ A, None if model[1].bias is None else model[1].bias.double())


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_with_the_dequantized_weight_and_the_update(kind: str, bias: bool) -> None:
    model, x = adapted(kind, bias=bias), inputs()
    layer, W = model[1], dense(model)
    A, B = (t.detach().double().requires_grad_() for t in (layer.lora_A, layer.lora_B))
    wide = x.detach().double().requires_grad_()
    y, right = model(x), expected(model, W, wide, A, B)
    torch.testing.assert_close(y.double(), right, atol=1e-5, rtol=1e-4)
    y.square().sum().backward()
    right.square().sum().backward()
    for found, exact in ((x.grad, wide.grad), (layer.lora_A.grad, A.grad), (layer.lora_B.grad, B.grad)):
        torch.testing.assert_close(found.double(), exact, atol=1e-3, rtol=1e-3)
    assert layer.lora_A.dtype == torch.float32


@pytest.mark.parametrize("kind", TAKEN)
def test_merged_into_a_dense_weight_nothing_is_lost_and_all_comes_back(kind: str) -> None:
    model, x = adapted(kind), inputs()
    W, before, y = dense(model), model[1].weight, model(x)
    assert lora.merge(model) == {}
    torch.testing.assert_close(model[1].weight.double(), W + model[1].update.delta().double(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(x), y, atol=1e-5, rtol=1e-4)
    keys = list(lora.merged_state_dict(model))
    assert keys == ["0.weight", "0.bias", "1.weight", "1.bias"]
    lora.unmerge(model)
    assert model[1].weight is before
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("kind", [kind for kind in TAKEN if not kind.startswith("quanto")])
@pytest.mark.parametrize("bias", [True, False])
def test_merged_for_good_it_is_a_plain_linear_layer(kind: str, bias: bool) -> None:
    model, x = adapted(kind, bias=bias), inputs()
    y = model(x)
    lora.merge(model, keep=False)
    assert type(model[1]) is nn.Linear
    assert vars(model[1]).keys() == vars(linear()).keys()
    torch.testing.assert_close(model(x), y, atol=1e-5, rtol=1e-4)
    other = nn.Sequential(nn.Linear(32, D), nn.Linear(D, K, bias=bias))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in TAKEN if kind.startswith("quanto")])
@pytest.mark.parametrize("merged", [False, True])
def test_a_layer_that_cannot_become_a_plain_one_is_refused_and_is_as_it_was(kind: str, merged: bool) -> None:
    model, x = adapted(kind), inputs()
    if merged:
        lora.merge(model)
    before, y = model[1].weight, model(x)
    with pytest.raises(lora.LayerError, match=r"'1' cannot be merged for good: a QLinear.*merged_state_dict"):
        lora.merge(model, keep=False)
    assert model[1].merged == merged
    assert model[1].weight is before
    torch.testing.assert_close(model(x), y)
    plain = nn.Sequential(nn.Linear(32, D), nn.Linear(D, K))
    plain.load_state_dict(lora.merged_state_dict(model))
    torch.testing.assert_close(plain(x), y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SAME)
def test_quantized_again_it_says_what_is_lost(kind: str) -> None:
    model, x = adapted(kind), inputs()
    W, before, y = dense(model), model[1].weight, model(x)
    lost = lora.merge(model, into="same", most_lost=9)
    again, delta = dense_of_merged(model), model[1].update.delta().double()
    assert type(model[1].weight) is type(before)
    assert lost["1"] == pytest.approx(1 - float(((again - W) * delta).sum() / delta.square().sum()), abs=1e-3)
    torch.testing.assert_close(
        model(x).double(), F.linear(model[0](x).double(), again, model[1].bias.double()), atol=1e-4, rtol=1e-3
    )
    lora.unmerge(model)
    assert model[1].weight is before
    torch.testing.assert_close(model(x), y)


def dense_of_merged(model: Any) -> Tensor:
    y: Tensor = model[1](torch.eye(D, requires_grad=True))
    return (y.detach() - model[1].bias.detach()).t().double()


@pytest.mark.parametrize("kind", SAME)
def test_what_is_quantized_again_unchanged_is_the_same(kind: str) -> None:
    model = model_of(kind)
    lora.inject(model, lora.LoRAConfig(r=4, target_modules=["1"]))  # an update of zero
    W = dense(model)
    assert lora.merge(model, into="same") == {"1": 0.0}
    torch.testing.assert_close(dense_of_merged(model), W, atol=2e-3, rtol=1e-2)


def test_an_update_that_would_be_lost_is_refused() -> None:
    model = adapted("bitsandbytes nf4")
    with torch.no_grad():
        model[1].lora_B.mul_(0.01)
    expect_refusal(lora.LayerError, "would lose .* most_lost=0.5 allows", model, lambda: lora.merge(model, into="same"))
    lora.merge(model)
    merged = model[1].weight
    with pytest.raises(lora.LayerError, match="would lose"):
        lora.merge(model, into="same")
    assert torch.equal(model[1].weight, merged), "it is merged as it was"
    assert lora.merge(model, into="same", most_lost=2)["1"] > 0.5


@pytest.mark.parametrize("kind", DENSE_ONLY)
def test_what_cannot_be_quantized_again_is_refused(kind: str) -> None:
    model = adapted(kind)
    expect_refusal(lora.LayerError, "not quantized again here", model, lambda: lora.merge(model, into="same"))


def test_a_word_that_is_none_is_refused() -> None:
    model: Any = adapted("bitsandbytes nf4")
    expect_refusal(lora.ConfigError, "choose one of dense, same", model, lambda: lora.merge(model, into="int3"))  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [-0.1, float("nan"), "half", None, True])
def test_a_share_that_is_none_is_refused(most: Any) -> None:
    model: Any = adapted("bitsandbytes nf4")
    expect_refusal(lora.ConfigError, "most_lost=.* at least 0", model, lambda: lora.merge(model, into="same", most_lost=most))


@pytest.mark.parametrize("into", ["dense", "same"])
def test_a_merge_that_fails_on_the_way_leaves_the_model_as_it_was(into: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(model_of("bitsandbytes nf4"), nn.Linear(K, 4))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0.0", "0.1", "1"]))
    before = {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, lora.AdaptedLayer)}

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model[1], "merge_fitting", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lora.merge(model, into=into, most_lost=9)
    for name, W in before.items():
        layer: Any = model.get_submodule(name)
        assert layer.weight is W
        assert not layer.merged
        assert layer.into == "dense"


def test_a_plain_model_takes_both_words() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    lora.inject(model, lora.LoRAConfig(r=2))
    assert lora.merge(model, into="same") == {}


@pytest.mark.parametrize("kind", TAKEN)
def test_it_is_saved_and_put_on_another_base(kind: str, tmp_path: Path) -> None:
    model, x = adapted(kind), inputs()
    lora.save(lora.extract(model), tmp_path)
    other = model_of(kind)
    assert lora.attach(other, tmp_path) == ["1"]
    torch.testing.assert_close(other(x), model(x))
    fresh = type(model_of(kind)[1])
    lora.eject(other)
    assert type(other[1]) is fresh
    torch.testing.assert_close(other(x), model_of(kind)(x))


@pytest.mark.parametrize("kind", [kind for kind in TAKEN if not kind.startswith("quanto")])  # of which there are no copies
@pytest.mark.parametrize("merged", [False, True])
def test_it_is_copied_and_its_factors_are_kept(kind: str, merged: bool) -> None:
    model, x = adapted(kind), inputs()
    if merged:
        lora.merge(model)
    y = model(x)
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(x), y)
    file = io.BytesIO()
    torch.save(lora.lora_state_dict(model), file)
    file.seek(0)
    third = adapted(kind)
    third.load_state_dict(torch.load(file), strict=False)
    torch.testing.assert_close(third(x), y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(kind: str, reentrant: bool) -> None:
    model = adapted(kind).train()
    found = []
    for again in (False, True):
        model.zero_grad()
        x = inputs()
        y = checkpoint(model, x, use_reentrant=reentrant) if again else model(x)
        y.square().sum().backward()
        found.append([x.grad, model[1].lora_A.grad.clone(), model[1].lora_B.grad.clone()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", TAKEN)
def test_training_steps_change_the_factors_alone(kind: str) -> None:
    model, x = adapted(kind).train(), inputs()
    W = dense(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(dense(model), W)


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("packed", [False, True])
def test_training_goes_on_after_an_evaluation(kind: str, packed: bool) -> None:
    """bitsandbytes packs a weight of four bits again on processors with AVX-512 BF16, and cannot train with it afterwards."""
    plain = model_of(kind).eval()
    if packed:
        with torch.no_grad():
            plain(inputs())
    lora.inject(plain, lora.LoRAConfig(r=4, target_modules=["1"]))
    found = []
    for _ in range(2):
        plain.train().zero_grad()
        x = inputs()
        plain(x).square().sum().backward()
        found.append(x.grad)
        with torch.no_grad():
            plain.eval()(inputs())
    torch.testing.assert_close(*found)
    lora.eject(plain)
    assert vars(plain[1]).keys() == vars(model_of(kind)[1]).keys()
    assert all(
        vars(plain[1])[name] == value
        for name, value in vars(model_of(kind)[1]).items()
        if isinstance(value, bool) and name != "training"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [kind for kind in TAKEN if kind.startswith("bitsandbytes")])
def test_evaluation_without_gradients_may_pack_the_weight_and_merges_as_well(kind: str, dtype: torch.dtype) -> None:
    """bitsandbytes packs a weight of four bits again on processors with AVX-512 BF16, once it has computed there."""
    model = adapted(kind, dtype=dtype).eval()
    x = inputs(dtype).detach()
    with torch.no_grad():
        y = model(x)
        for _ in range(2):
            lora.merge(model)
            merged = model(x)
            lora.unmerge(model)
            assert (merged.float() - y.float()).norm() < 0.02 * y.float().norm()
            assert (model(x).float() - y.float()).norm() < 0.02 * y.float().norm()


@pytest.mark.parametrize("kind", REFUSED)
def test_weights_that_quantize_the_input_are_refused(kind: str) -> None:
    model = model_of(kind)
    config = lora.LoRAConfig(target_modules=["1"])
    with pytest.raises(lora.TargetError, match="quantizes its input too"):
        lora.inject(model, config)
    assert type(model[1]) is nn.Linear
    assert set(REFUSED) | set(TAKEN) == set(KINDS)


def test_a_weight_of_integers_that_no_row_knows_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    expect_refusal(
        lora.TargetError, "dtype torch.int8", model, lambda: lora.inject(model, lora.LoRAConfig(target_modules=["0"]))
    )
