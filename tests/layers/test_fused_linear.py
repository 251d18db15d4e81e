"""Updates on chosen slices of a fused projection: every mask, equal and unequal widths, both layouts of the weight."""

import copy
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import loralib as lora
from kinds import DTYPES, Holder, Watch, adapted, agrees, expected, fill, hf_conv1d, saved_tensors
from models import close, expect_refusal, same_bits

MASKS = [mask for n in (1, 2, 3) for mask in product([False, True], repeat=n) if any(mask)]
SIZES = st.sampled_from([1, 3, 5, 17, 123])


def layer_of(d: int = 5, k: int = 6, mask: tuple[bool, ...] = (True, False, True), **options) -> lora.MergedLinear:
    options = {"r": 2, "lora_alpha": 3, "merge_weights": False} | options
    return fill(lora.MergedLinear(d, k, enable_lora=list(mask), **options))


def dense(layer: lora.MergedLinear, x: Tensor) -> Tensor:
    """What the layer must compute, in float64, slice by slice."""
    W = layer.pristine_weight.double()
    W = W.t() if layer.fan_in_fan_out else W
    y = list(F.linear(x.double(), W, None if layer.bias is None else layer.bias.double()).split(layer.widths, dim=-1))
    n, r = -1, layer.r
    rows = 0
    for i, on in enumerate(layer.enable_lora):
        if on:
            n += 1
            A, B = layer.lora_A.double()[n * r : (n + 1) * r], layer.lora_B.double()[rows : rows + layer.widths[i]]
            rows += layer.widths[i]
            y[i] = y[i] + layer.scaling * (x.double() @ A.t() @ B.t())
    return torch.cat(y, dim=-1)


# --- forward is the base operation with the effective weight --------------------------------------------------------


@given(
    d=SIZES,
    width=st.integers(1, 9),
    mask=st.sampled_from(MASKS),
    r=st.integers(1, 3),
    fan_in_fan_out=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    leading=st.lists(st.integers(0, 3), max_size=3),
)
@pytest.mark.filterwarnings("ignore:.*larger than both sides")
def test_the_layer_of_0_1_computes_with_its_effective_weight(d, width, mask, r, fan_in_fan_out, bias, dtype, leading):
    options = dict(r=r, fan_in_fan_out=fan_in_fan_out, bias=bias, dtype=dtype)
    layer = layer_of(d, width * len(mask), mask, **options)
    x = torch.randn(*leading, d).to(dtype)
    with torch.no_grad():
        W = layer.effective_weight(layer.weight)
    assert (W.dtype, W.shape) == (layer.weight.dtype, layer.weight.shape)
    y = layer(x)
    assert y.dtype == dtype
    if x.numel():
        assert agrees(y, dense(layer, x), dtype, d)
    layer.merge()
    assert same_bits(layer(x), F.linear(x, W.t() if fan_in_fan_out else W, layer.bias))
    assert not x.numel() or agrees(layer(x), dense(layer, x), dtype, d)


@given(
    d=SIZES,
    slices=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4).filter(
        lambda s: any(on for _, on in s)
    ),
    r=st.integers(1, 3),
    use_rslora=st.booleans(),
    conv1d=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    training=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:.*larger than both sides")
def test_slices_of_any_widths_compute_with_their_effective_weight(d, slices, r, use_rslora, conv1d, bias, dtype, training):
    widths, mask = zip(*slices, strict=True)
    k = sum(widths)
    layer = hf_conv1d(k, d) if conv1d else nn.Linear(d, k, bias=bias)
    config = dict(r=r, use_rslora=use_rslora, enable_lora=mask, slice_widths={"layer": widths})
    plain, model = adapted(layer.to(dtype).train(training), dtype=dtype, **config)
    x = torch.randn(2, 3, d).to(dtype)
    reference = expected(plain, model, (x,))
    assert agrees(model(x), reference, dtype, d)
    parts = zip(mask, model(x).split(widths, dim=-1), plain(x).split(widths, dim=-1), strict=True)
    assert all(close(part, base, factor=2) for on, part, base in parts if not on)
    lora.merge(model)
    assert agrees(model(x), reference, dtype, d)


@pytest.mark.parametrize("mask", MASKS)
def test_each_mask_changes_its_own_slices_and_no_other(mask):
    layer, x = layer_of(5, 6, mask), torch.randn(4, 5)
    width = 6 // len(mask)
    changed = (layer(x) - F.linear(x, layer.weight, layer.bias)).abs().split(width, dim=-1)
    assert [bool(part.max() > 0) for part in changed] == list(mask)
    assert layer.lora_A.shape == (2 * sum(mask), 5)
    assert layer.lora_B.shape == (width * sum(mask), 2)


def test_each_slice_learns_from_its_own_factors_alone():
    layer, x = layer_of(5, 6), torch.randn(4, 5)
    layer(x)[:, :2].square().sum().backward()
    assert layer.lora_A.grad[:2].abs().min() > 0
    assert layer.lora_B.grad[:2].abs().min() > 0
    assert not layer.lora_A.grad[2:].any()
    assert not layer.lora_B.grad[2:].any()


def test_a_single_slice_is_a_plain_update():
    layer = layer_of(5, 6, (True,))
    plain = lora.Linear(5, 6, r=2, lora_alpha=3, merge_weights=False)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 5)
    assert same_bits(layer(x), plain(x))


# --- the update of the weight is never formed -----------------------------------------------------------------------


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_no_tensor_of_the_weights_size_is_computed_or_kept(fan_in_fan_out):
    d, k, tokens, r = 40, 60, 7, 2
    layer, x = layer_of(d, k, fan_in_fan_out=fan_in_fan_out), torch.randn(tokens, d, requires_grad=True)
    with saved_tensors() as kept, Watch([layer.weight]) as watch:
        y = layer(x)
    y_of = watch.sizes()
    assert y_of  # something was seen
    with Watch([layer.weight]) as watch:
        y.sum().backward()
    assert d * k not in y_of | watch.sizes()
    largest = max(tokens * k, tokens * d, 2 * r * d, k * r)
    assert max(y_of | watch.sizes()) <= largest
    own = {t.untyped_storage().data_ptr() for t in (layer.weight, layer.lora_A, layer.lora_B, x)}
    extra = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert sum(size for storage, size in extra.items() if storage not in own) <= 4 * 2 * (2 * r * tokens)


def test_the_watch_sees_a_dense_update():
    layer, x = layer_of(40, 60), torch.randn(7, 40)
    with Watch([layer.weight]) as watch:
        F.linear(x, layer.effective_weight(layer.weight))
    assert 40 * 60 in watch.sizes()


# --- the layer of 0.1 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"enable_lora": [False]}, {"enable_lora": [False, False], "r": 4}])
def test_with_no_slice_enabled_it_is_a_plain_linear_layer(options):
    layer = lora.MergedLinear(5, 6, **{"r": 2} | options)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.weight.requires_grad
    x = torch.randn(3, 5)
    for training in (True, False):
        assert same_bits(layer.train(training)(x), F.linear(x, layer.weight, layer.bias))
    assert not layer.merged
    copy.deepcopy(layer)
    assert lora.lora_state_dict(nn.Sequential(layer)) == {}


def test_it_has_the_attributes_and_shapes_of_0_1():
    layer = lora.MergedLinear(8, 12, r=4, lora_alpha=2, enable_lora=[True, False, True], fan_in_fan_out=True)
    assert (layer.r, layer.lora_alpha, layer.scaling, layer.merge_weights, layer.fan_in_fan_out) == (4, 2, 0.5, True, True)
    assert layer.enable_lora == [True, False, True]
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {
        "weight": (8, 12),
        "bias": (12,),
        "lora_A": (8, 8),
        "lora_B": (8, 4),
    }
    assert not layer.weight.requires_grad
    assert not layer.lora_B.any()
    assert layer.weight.t().is_contiguous()
    assert not layer.eval().train().merged


def test_eval_and_train_merge_and_unmerge_the_very_weight():
    layer, x = layer_of(merge_weights=True), torch.randn(3, 5)
    W, y = layer.weight, layer(x)
    assert layer.eval() is layer
    assert layer.merged
    assert close(layer(x), y, factor=16)
    assert layer.train().weight is W


def test_dropout_drops_the_same_inputs_for_all_slices():
    p, d = 0.3, 20_000
    layer = lora.MergedLinear(d, 3, r=1, lora_dropout=p, enable_lora=[True, True, True], bias=False, merge_weights=False)
    with torch.no_grad():
        layer.weight.zero_(), layer.lora_A.fill_(1), layer.lora_B.fill_(1)
    x = torch.ones(1, d, requires_grad=True)
    y = layer(x)
    kept = [torch.autograd.grad(y[0, i], x, retain_graph=True)[0] for i in range(3)]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])
    assert torch.equal(kept[0].unique(), torch.tensor([0.0, 1 / (1 - p)]))
    assert abs(float((kept[0] == 0).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / d)
    assert torch.equal(layer.eval()(x), torch.full((1, 3), float(d)))


def test_a_plain_layer_comes_out():
    layer = layer_of()
    y = F.linear(x := torch.randn(3, 5), layer.weight, layer.bias)
    model = nn.Sequential(layer)
    lora.eject(model)
    assert type(layer) is nn.Linear
    assert vars(layer).keys() == vars(nn.Linear(5, 6)).keys()
    assert same_bits(model(x), y)


# --- what cannot work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"enable_lora": [True, True, True, False]},
            r"enable_lora=\[True, True, True, False\] .* 4 does not divide out_features=6",
        ),
        ({"enable_lora": []}, r"enable_lora=\[\]"),
        ({"enable_lora": [1, 0]}, r"enable_lora=\[1, 0\]"),
        ({"enable_lora": [True, None]}, "must say True or False for each slice"),
        ({"enable_lora": [True], "r": -1}, "r=-1"),
        ({"enable_lora": [True], "r": 2.0}, "r=2.0"),
        ({"enable_lora": [True], "lora_alpha": 0}, "lora_alpha=0"),
        ({"enable_lora": [True], "lora_dropout": 1}, "lora_dropout=1"),
    ],
)
def test_a_constructor_call_that_cannot_work_is_refused(options, message):
    with pytest.raises(lora.ConfigError, match=message):
        lora.MergedLinear(5, 6, **{"r": 2} | options)


def test_a_rank_beyond_both_sides_is_warned_of_at_construction():
    with pytest.warns(UserWarning, match="r=9 is larger than both sides") as caught:
        lora.MergedLinear(5, 6, r=9, enable_lora=[True, True])
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"enable_lora": [True] * 4}, lora.TargetError, "'layer' .* 4 does not divide out_features=6"),
        ({"enable_lora": [False, False]}, lora.ConfigError, "must enable at least one slice"),
        ({"enable_lora": {"layer": [False]}}, lora.ConfigError, "must enable at least one slice"),
        ({"enable_lora": "True"}, lora.ConfigError, "enable_lora='True'"),
        ({"enable_lora": {"layr": [True, False]}}, lora.TargetError, "'layr'.*layer"),
        ({"enable_lora": [True, True], "slice_widths": {"layer": [3, 4]}}, lora.TargetError, r"widths \[3, 4\] do not cut"),
        ({"enable_lora": [True, True], "slice_widths": {"layer": [2, 2, 2]}}, lora.TargetError, r"\[2, 2, 2\] do not cut"),
        ({"enable_lora": [True, True], "slice_widths": {"layer": [0, 6]}}, lora.ConfigError, "must be positive integers"),
        ({"enable_lora": [True, True], "slice_widths": {"layer": [-1, 7]}}, lora.ConfigError, "must be positive integers"),
        ({"enable_lora": [True, True], "slice_widths": {"layer": []}}, lora.ConfigError, "slice_widths"),
        ({"slice_widths": {"layer": [3, 3]}}, lora.TargetError, "enable_lora"),
        ({"fan_in_fan_out": True}, lora.TargetError, "stores its weight as \\(out, in\\)"),
        ({"fan_in_fan_out": True, "enable_lora": [True, True]}, lora.TargetError, "stores its weight as"),
    ],
)
def test_an_injection_that_cannot_work_is_refused_and_nothing_changes(config, error, message):
    model = Holder(nn.Linear(5, 6))
    call = lambda: lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["layer"]} | config))  # noqa: E731
    expect_refusal(error, message, model, call)


@pytest.mark.parametrize("layer", [nn.Embedding(5, 6), nn.Conv1d(3, 6, 1), nn.Bilinear(2, 2, 6)])
@pytest.mark.parametrize("config", [{"enable_lora": [True, True]}, {"slice_widths": {"layer": [3, 3]}}])
def test_slices_of_layers_that_are_not_linear_are_refused(layer, config):
    model = Holder(layer)
    call = lambda: lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["layer"]} | config))  # noqa: E731
    expect_refusal(lora.TargetError, "'layer'", model, call)


def test_a_mask_may_be_given_by_name_and_the_other_targets_stay_plain():
    model = nn.ModuleDict({"qkv": nn.Linear(4, 12), "out": nn.Linear(4, 4)})
    lora.inject(model, lora.LoRAConfig(r=2, enable_lora={"qkv": [True, False, True]}, slice_widths={"qkv": [4, 6, 2]}))
    updates = lora.extract(model).layers
    assert {name: type(update) for name, update in updates.items()} == {"qkv": lora.FusedUpdate, "out": lora.LoRAUpdate}
    assert updates["qkv"].widths == (4, 6, 2)


def adapter_of(k: int = 6, d: int = 5, **config) -> lora.Adapter:
    return lora.extract(adapted(nn.Linear(d, k), **config)[1])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"enable_lora": [True, True, False]},
            r"layer: enable_lora \(True, True, False\) .*adapter, \(True, False, True\) .*model",
        ),
        (
            {"enable_lora": [True, False, True], "slice_widths": {"layer": [1, 2, 3]}},
            r"widths \(1, 2, 3\) in the adapter, \(2, 2, 2\)",
        ),
        ({"enable_lora": [True, False, True], "r": 3}, "layer: rank 3 in the adapter, 2 in the model"),
        ({"enable_lora": [True, True]}, r"lora_B \(6, 2\) in the adapter, \(4, 2\) in the model"),
        ({}, "kind linear in the adapter, fused in the model"),
    ],
)
def test_an_adapter_of_other_slices_does_not_fit(other, message):
    model = adapted(nn.Linear(5, 6), enable_lora=[True, False, True])[1]
    adapter = adapter_of(**other)
    for target in (model, lora.merge(model) or model):
        expect_refusal(lora.AttachError, message, target, lambda t=target: lora.attach(t, adapter))


def test_an_adapter_of_another_width_does_not_fit_a_plain_layer():
    adapter = adapter_of(k=9, enable_lora=[True, False, True])
    expect_refusal(lora.AttachError, "layer", model := Holder(nn.Linear(5, 6)), lambda: lora.attach(model, adapter))
    adapter = adapter_of(enable_lora=[True, False, True])
    expect_refusal(lora.AttachError, "layer", other := Holder(nn.Linear(4, 6)), lambda: lora.attach(other, adapter))
    embedding = Holder(nn.Embedding(5, 6))
    expect_refusal(lora.AttachError, "layer.*FusedUpdate", embedding, lambda: lora.attach(embedding, adapter))


def test_the_adapter_of_a_conv1d_fits_the_linear_layer_of_the_same_function():
    plain, model = adapted(hf_conv1d(6, 5), enable_lora=[True, False, True])
    linear = Holder(nn.Linear(5, 6))
    with torch.no_grad():
        linear.layer.weight.copy_(plain.layer.weight.t()), linear.layer.bias.copy_(plain.layer.bias)
    lora.attach(linear, lora.extract(model))
    x = torch.randn(3, 5)
    assert close(linear(x), model(x), factor=16)
    assert close(lora.extract(linear).delta("layer"), lora.extract(model).delta("layer"))


def test_a_configuration_of_both_layouts_can_be_injected_again():
    make = lambda: nn.ModuleDict({"a": hf_conv1d(4, 4), "b": nn.Linear(4, 4)})  # noqa: E731
    model = make()
    names = lora.inject(model, lora.LoRAConfig(r=2))
    assert lora.inject(make(), lora.extract(model).config) == names


def test_fan_in_fan_out_may_be_said_where_it_is_so():
    model = Holder(hf_conv1d(6, 5))
    assert lora.inject(model, lora.LoRAConfig(r=2, fan_in_fan_out=True, enable_lora=[True, False])) == ["layer"]
