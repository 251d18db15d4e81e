"""Updates of convolutions of one, two and three dimensions, forward and transposed, in true rank and as 0.1 factors them."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import loralib as lora
from kinds import DTYPES, KINDS, Holder, SamePadded, Standardized, adapted, agrees, expected, fill
from models import bits, close, expect_refusal, same_bits, snapshot

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*larger than both sides"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


@st.composite
def geometries(draw: st.DrawFn, transposed: bool = False) -> tuple[int, dict[str, Any], tuple[int, ...]]:
    """The number of dimensions, the arguments of a convolution, and the spatial shape of an input that it takes."""
    n = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(n))  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    d, k = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel, dilation = each(1, 3), each(1, 2)
    geometry: dict[str, Any] = {"kernel_size": kernel, "dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
    if transposed:
        geometry |= {"stride": each(1, 3), "padding": tuple(min(s, x - 1) for s, x in zip(each(0, 1), kernel, strict=True))}
        pairs = zip(geometry["stride"], dilation, strict=True)
        geometry["output_padding"] = tuple(draw(st.integers(0, max(s, e) - 1)) for s, e in pairs)
    elif draw(st.booleans()):
        geometry["padding"] = draw(st.sampled_from(["same", "valid"]))
        geometry["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    else:
        geometry |= {"stride": each(1, 3), "padding": each(0, 2)}
        geometry["padding_mode"] = draw(st.sampled_from(["zeros", "replicate", "circular"]))
    return n, {"in_channels": d, "out_channels": k} | geometry, each(6, 8)


def terms(layer: nn.Module) -> int:
    return layer.in_channels * math.prod(layer.kernel_size) * 4


# --- forward is the base operation with the effective weight --------------------------------------------------------


@given(geometry=geometries(), r=st.integers(1, 3), dtype=st.sampled_from(DTYPES), batch=st.sampled_from([None, 1, 2]))
def test_a_convolution_computes_with_its_effective_weight(geometry, r, dtype, batch):
    n, options, size = geometry
    layer = CONVOLUTIONS[n](**options).to(dtype)
    plain, model = adapted(layer, dtype, r=r)
    x = torch.randn(*([] if batch is None else [batch]), options["in_channels"], *size).to(dtype)
    reference = expected(plain, model, (x,))
    for training in (True, False):
        y = model.train(training)(x)
        assert y.dtype == dtype
        assert agrees(y, reference, dtype, terms(layer))
    W = model.layer.effective_weight(model.layer.weight)
    assert (W.dtype, W.shape) == (dtype, plain.layer.weight.shape)
    lora.merge(model)
    with torch.no_grad():
        plain.layer.weight.copy_(W)
    assert same_bits(model(x), plain(x))
    assert agrees(model(x), reference, dtype, terms(layer))


@given(
    geometry=geometries(transposed=True),
    r=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    batch=st.sampled_from([None, 1, 2]),
)
def test_a_transposed_convolution_computes_with_its_effective_weight(geometry, r, dtype, batch):
    n, options, size = geometry
    layer = TRANSPOSED[n](**options).to(dtype)
    plain, model = adapted(layer, dtype, r=r)
    x = torch.randn(*([] if batch is None else [batch]), options["in_channels"], *(s // 2 for s in size)).to(dtype)
    reference = expected(plain, model, (x,))
    y = model(x)
    assert y.dtype == dtype
    assert agrees(y, reference, dtype, terms(layer))
    lora.merge(model)
    assert agrees(model(x), reference, dtype, terms(layer))
    with torch.no_grad():
        plain.layer.weight.copy_(model.layer.weight)
    assert same_bits(model(x), plain(x))


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
def test_a_transposed_convolution_takes_an_output_size(n, extra, batched):
    plain, model = adapted(TRANSPOSED[n](4, 6, 3, stride=3, groups=2, padding=1))
    x = torch.randn(*([2] if batched else []), 4, *[3] * n)
    size = [7 + extra] * n
    reference = expected(plain, model, (x,), output_size=size)
    y = model(x, output_size=size)
    assert y.shape[-n:] == torch.Size(size)
    assert agrees(y, reference, torch.float32, 96)
    assert same_bits(model(x, size), y)
    with lora.merged(model):
        assert agrees(model(x, output_size=size), reference, torch.float32, 96)


def test_arguments_may_be_passed_by_name_in_any_order():
    model = adapted(nn.ConvTranspose1d(2, 3, 3, stride=2))[1]
    x = torch.randn(1, 2, 3)
    y = model(x, [8])
    assert same_bits(model(input=x, output_size=[8]), y)
    assert same_bits(model(output_size=[8], input=x), y)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "conv" in kind and kind not in ("transformers' Conv1D", "merged Conv1D")]
)
def test_a_batch_may_be_empty(kind):
    plain, model = KINDS[kind].build()
    x = KINDS[kind].inputs()[0][:0]
    assert model(x).shape == plain(x).shape
    model(x).sum().backward()


def test_a_convolution_in_channels_last_computes_the_same():
    plain, model = adapted(nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last))
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    reference = expected(plain, model, (x,))
    assert agrees(model(x), reference, torch.float32, 72)
    assert model(x).is_contiguous(memory_format=torch.channels_last) == plain(x).is_contiguous(
        memory_format=torch.channels_last
    )
    lora.merge(model)
    assert agrees(model(x), reference, torch.float32, 72)


# --- ranks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d])
def test_the_update_has_the_rank_asked_for(cls, groups):
    model = adapted(cls(8, 10, 3, groups=groups), r=2)[1]
    update = lora.extract(model.double()).layers["layer"]
    assert isinstance(update, lora.ConvolutionUpdate)
    assert (update.groups, update.transposed) == (groups, "Transpose" in cls.__name__)
    n = len(model.layer.kernel_size)
    assert model.layer.lora_A.shape == (2, 8 // groups, *[3] * n)
    assert model.layer.lora_B.shape == (10, 2, *[1] * n)
    assert update.delta().shape == (10, 8 // groups, *[3] * n)
    assert torch.linalg.matrix_rank(update.delta().flatten(1)) == 2


def test_the_factors_of_0_1_have_its_shapes_and_a_larger_rank():
    layer = fill(lora.Conv2d(8, 10, 3, r=2, groups=2)).double()
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((6, 24), (15, 6))
    assert isinstance(layer.update, lora.LegacyConvolutionUpdate)
    assert torch.linalg.matrix_rank(layer.update.delta().flatten(1)) > 2


# --- the layers of 0.1 ----------------------------------------------------------------------------------------------


@given(
    kernel=st.integers(1, 4),
    groups=st.sampled_from([1, 2]),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    padding_mode=st.sampled_from(["zeros", "circular"]),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    merge_weights=st.booleans(),
    batched=st.booleans(),
)
def test_the_conv2d_of_0_1_computes_with_its_effective_weight(
    kernel, groups, stride, padding, padding_mode, bias, dtype, merge_weights, batched
):
    options = dict(stride=1 if padding == "same" else stride, padding=padding, padding_mode=padding_mode, bias=bias)
    layer = lora.Conv2d(4, 6, kernel, r=2, lora_alpha=3, merge_weights=merge_weights, groups=groups, dtype=dtype, **options)
    model = fill(Holder(layer))
    x = torch.randn(*([2] if batched else []), 4, 6, 7).to(dtype)
    W = layer.weight.double() + 1.5 * (layer.lora_B.double() @ layer.lora_A.double()).view(layer.weight.shape)
    plain = nn.Conv2d(4, 6, kernel, groups=groups, **options).double()
    with torch.no_grad():
        plain.weight.copy_(W)
        if bias:
            plain.bias.copy_(layer.bias)
    reference = plain(x.double())
    assert agrees(model(x), reference, dtype, 64)
    assert model.eval().layer.merged is merge_weights
    assert agrees(model(x), reference, dtype, 64)
    assert agrees(model.train()(x), reference, dtype, 64)


@pytest.mark.parametrize(
    ("cls", "args", "shapes"),
    [
        (lora.Conv1d, (4, 6, 3), ((2, 4, 3), (6, 2, 1))),
        (lora.Conv2d, (4, 6, 3), ((6, 12), (18, 6))),
        (lora.Conv2d, (4, 6, (3, 3)), ((6, 12), (18, 6))),
        (lora.Conv2d, (4, 6, (3, 1)), ((2, 4, 3, 1), (6, 2, 1, 1))),
        (lora.Conv3d, (4, 6, (1, 2, 3)), ((2, 4, 1, 2, 3), (6, 2, 1, 1, 1))),
    ],
)
def test_the_constructors_make_layers_that_are_torchs_with_an_update(cls, args, shapes):
    layer = cls(*args, r=2, lora_alpha=4, padding=1)
    plain = getattr(nn, cls.__name__)(*args, padding=1)
    assert isinstance(layer, type(plain))
    assert isinstance(layer, lora.ConvLoRA)
    assert (layer.lora_A.shape, layer.lora_B.shape) == shapes
    assert list(layer.state_dict()) == ["lora_A", "lora_B", "weight", "bias"]
    assert not layer.lora_B.any()
    assert layer.lora_A.any()
    assert (layer.scaling, layer.weight.requires_grad, layer.merge_weights) == (2.0, False, True)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    x = torch.randn(2, 4, *[5] * len(layer.kernel_size))
    assert close(layer(x), plain(x), factor=8)
    fill(layer)
    y, W = layer(x), layer.weight
    assert not close(y, plain(x), factor=8)
    assert layer.eval() is layer
    assert layer.merged
    assert close(layer(x), y, factor=64)
    assert layer.train().weight is W
    model = nn.Sequential(layer)
    lora.eject(model)
    assert type(layer) is type(plain)
    assert vars(layer).keys() == vars(plain).keys()
    assert same_bits(model(x), plain(x))


@pytest.mark.parametrize("cls", [lora.Conv1d, lora.Conv2d, lora.Conv3d])
def test_rank_zero_is_a_plain_convolution(cls):
    layer = cls(4, 6, 3)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.weight.requires_grad
    x = torch.randn(2, 4, *[5] * len(layer.kernel_size))
    assert same_bits(layer.eval()(x), layer.train()(x))


def test_the_bare_convolution_is_a_view_of_the_layer():
    layer, x = fill(lora.Conv2d(2, 4, 3, r=2)), torch.randn(1, 2, 5, 5)
    bare = F.conv2d(x, layer.weight, layer.bias)
    assert layer.conv.weight is layer.weight
    assert layer.conv.in_channels == 2
    assert same_bits(layer.conv(x), bare)
    assert list(layer.conv.state_dict()) == ["weight", "bias"]
    assert [name for name, _ in layer.named_modules()] == [""]
    other = nn.Conv2d(2, 4, 3)
    layer.conv.load_state_dict(other.state_dict())
    assert same_bits(layer.weight, other.weight)
    layer.conv = third = nn.Conv2d(2, 4, 3)
    assert layer.weight is third.weight
    layer.conv.weight = other.weight
    assert layer.weight is other.weight
    for wrong in (nn.Conv2d(2, 4, 5), nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3), nn.Linear(2, 4)):
        expect_refusal(lora.LayerError, "cannot take the place", layer, lambda w=wrong: setattr(layer, "conv", w))


@pytest.mark.parametrize("names", [("weight",), ("conv.weight",), ("weight", "conv.weight")])
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_all_names_that_versions_of_0_1_gave_the_weight_are_read(names, merged, assign):
    model = nn.Sequential(lora.Conv2d(2, 4, 3, r=2)).train(not merged)
    W = torch.randn(4, 2, 3, 3)
    bias = {"0.conv.bias" if "conv.weight" in names else "0.bias": torch.randn(4)}
    state = {f"0.{name}": W for name in names} | bias | lora.lora_state_dict(fill(copy.deepcopy(model)))
    before = list(state)
    result = model.load_state_dict(state, assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert list(state) == before
    assert same_bits(model.state_dict()["0.weight"], W)
    assert same_bits(model.state_dict()["0.bias"], next(iter(bias.values())))


def test_a_convolution_of_ones_own_is_made_from_any_of_torchs():
    class Own(lora.ConvLoRA):
        def __init__(self, *args, **kwargs):
            super().__init__(nn.ConvTranspose1d, *args, **kwargs)

    layer = fill(Own(4, 6, 3, r=2, groups=2, stride=2))
    assert isinstance(layer, Own)
    assert isinstance(layer, nn.ConvTranspose1d)
    x = torch.randn(2, 4, 5)
    y = layer(x)
    assert close(layer.eval()(x), y, factor=64)
    assert same_bits(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize(("cls", "kernel"), [(lora.Conv1d, 3), (lora.Conv2d, 3), (lora.Conv2d, (2, 3))])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": -1}, "r=-1"),
        ({"r": 0.5}, "r=0.5"),
        ({"r": 2, "lora_alpha": 0}, "lora_alpha=0"),
        ({"lora_dropout": 2}, "lora_dropout=2"),
    ],
)
def test_values_that_cannot_work_are_refused(cls, kernel, options, message):
    with pytest.raises(lora.ConfigError, match=message):
        cls(4, 6, kernel, **options)


# --- dropout --------------------------------------------------------------------------------------------------------


def dropped_inputs(model: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What each input of a layer with a kernel of 1 contributes, in training and in evaluation."""
    with torch.no_grad():
        model.layer.weight.zero_()
        for p in (model.layer.lora_A, model.layer.lora_B):
            p.fill_(1)
    x = torch.ones(shape)
    return model.train()(x), model.eval()(x)


@pytest.mark.parametrize("layer", ["conv1d", "transposed", "0.1"])
def test_dropout_drops_inputs_of_the_update(layer):
    p, n = 0.3, 20_000
    if layer == "0.1":
        model = Holder(lora.Conv2d(1, 1, 1, r=1, lora_dropout=p, bias=False, merge_weights=False))
    else:
        cls = nn.Conv2d if layer == "conv1d" else nn.ConvTranspose2d
        model = adapted(cls(1, 1, 1, bias=False), r=1, lora_alpha=1, lora_dropout=p)[1]
    dropped, full = dropped_inputs(model, (1, 1, 100, n // 100))
    assert torch.equal(full, torch.ones_like(full))
    assert torch.equal(dropped.unique(), torch.tensor([0.0, 1 / (1 - p)]))
    assert abs(float((dropped == 0).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("legacy", [False, True])
def test_dropout_acts_on_the_update_alone_and_its_mean_is_the_full_update(legacy):
    if legacy:
        model = fill(Holder(lora.Conv2d(3, 4, 3, r=2, padding=1, groups=1, lora_dropout=0.5, merge_weights=False)))
    else:
        model = adapted(nn.Conv2d(3, 4, 3, padding=1), lora_dropout=0.5)[1]
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        full = model.eval()(x)
        many = torch.stack([model.train()(x) for _ in range(2000)])
    assert (many.mean(0) - full).abs().max() < 6 * many.std(0).max() / 2000**0.5
    assert many.std(0).max() > 0.1
    with lora.disabled(model):
        assert same_bits(model(x), F.conv2d(x, model.layer.weight, model.layer.bias, padding=1))


# --- a forward of its own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [SamePadded, Standardized])
def test_a_forward_of_its_own_computes_the_same_merged_and_unmerged(cls):
    plain, model = adapted(cls(4, 6, 2))
    x, W = torch.randn(2, 4, 5, 5), model.layer.weight
    y = model(x)
    assert model.layer.weight is W
    assert agrees(y, expected(plain, model, (x,)), torch.float32, 128)
    with lora.merged(model):
        assert same_bits(model(x), y)
    assert same_bits(model(x=x), y)
    with lora.disabled(model):
        assert same_bits(model(x), plain(x))


def test_what_a_forward_of_its_own_writes_on_the_layer_stays():
    class Streaming(nn.Conv1d):
        """Keeps the end of its input for the next call."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_buffer("calls", torch.zeros(()))
            self.past = None

        def forward(self, x: Tensor) -> Tensor:
            x = x if self.past is None else torch.cat([self.past, x], dim=-1)
            self.past, self.calls = x[..., -2:], self.calls + 1
            return super().forward(x)

    plain, model = adapted(Streaming(2, 3, 3))
    x = torch.randn(1, 2, 6)
    parts = [m(part) for m in (plain, model) for part in x.split(3, dim=-1)]
    whole = copy.deepcopy(model)
    whole.layer.past = None
    assert model.layer.calls == 2
    assert close(torch.cat(parts[2:], dim=-1), whole(x), factor=64)


def test_an_error_in_a_forward_of_its_own_leaves_the_weight_in_its_place():
    model = adapted(SamePadded(4, 6, 2))[1]
    before = snapshot(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5, 5, 5))
    assert snapshot(model) == before


@pytest.mark.parametrize("cls", [SamePadded, Standardized])
def test_dropout_cannot_act_in_a_forward_of_its_own_and_is_refused(cls):
    model = Holder(cls(4, 6, 2))
    call = lambda: lora.inject(model, lora.LoRAConfig(r=2, target_modules=["layer"], lora_dropout=0.1))  # noqa: E731
    message = "'layer' .* lora_dropout=0.1 cannot act in it, .*; exclude it or use 0"
    expect_refusal(lora.TargetError, message, model, call)
    adapter = lora.extract(adapted(nn.Conv2d(4, 6, 2), lora_dropout=0.1)[1])
    expect_refusal(lora.AttachError, "layer: lora_dropout=0.1 cannot act", model, lambda: lora.attach(model, adapter))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_forward_on_the_instance_is_carried(legacy):
    model = Holder(nn.Conv2d(4, 6, 3))
    original = model.layer.forward
    model.layer.forward = lambda x: original(x) + 7
    x, before = torch.randn(2, 4, 5, 5), snapshot(model)
    y = model(x)
    if legacy:
        update = lora.LegacyConvolutionUpdate(torch.randn(6, 12), torch.zeros(18, 6), 3, weight_shape=(6, 4, 3, 3))
        lora.attach(model, lora.Adapter(lora.LoRAConfig(r=2), {"layer": update}))
    else:
        lora.inject(model, lora.LoRAConfig(r=2, target_modules=["layer"]))
    assert same_bits(model(x), y)
    fill(model)
    z = model(x)
    assert not close(z, y, factor=64)
    lora.merge(model)
    assert close(model(x), z, factor=64)
    lora.eject(model)
    assert snapshot(model) == before


# --- what does not fit ----------------------------------------------------------------------------------------------


def adapter_of(layer: nn.Module, **config) -> lora.Adapter:
    return lora.extract(adapted(layer, **config)[1])


def test_adapters_of_other_convolutions_do_not_fit():
    wrong = {
        "groups 2 in the adapter, 1 in the model": nn.Conv2d(4, 6, 3, groups=2),
        "transposed True in the adapter, False in the model": nn.ConvTranspose2d(4, 6, 3),
        r"lora_A \(2, 4, 2, 3\) in the adapter, \(2, 4, 3, 3\) in the model": nn.Conv2d(4, 6, (2, 3)),
        r"lora_B \(5, 2, 1, 1\) in the adapter, \(6, 2, 1, 1\) in the model": nn.Conv2d(4, 5, 3),
        r"lora_A \(2, 4, 3\) in the adapter": nn.Conv1d(4, 6, 3),
    }
    for message, layer in wrong.items():
        adapter = adapter_of(layer)
        for model in (Holder(nn.Conv2d(4, 6, 3)), adapted(nn.Conv2d(4, 6, 3))[1]):
            expect_refusal(lora.AttachError, f"layer: .*{message}", model, lambda m=model, a=adapter: lora.attach(m, a))


def test_an_adapter_of_another_kind_is_named():
    adapter = adapter_of(nn.Linear(4, 6))
    model = Holder(nn.Conv2d(4, 6, 1))
    message = "layer: expected a ConvolutionUpdate or LegacyConvolutionUpdate or LegacyTransposedUpdate for a Conv2d layer"
    expect_refusal(lora.AttachError, message, model, lambda: lora.attach(model, adapter))


def test_the_form_of_0_1_and_the_true_rank_are_not_mixed_up():
    legacy = Holder(fill(lora.Conv2d(4, 6, 3, r=2, merge_weights=False)))
    adapter = lora.extract(legacy)
    x = torch.randn(2, 4, 5, 5)
    plain = Holder(nn.Conv2d(4, 6, 3))
    plain.load_state_dict({k: v for k, v in legacy.state_dict().items() if "lora_" not in k})
    lora.attach(plain, adapter)
    assert same_bits(plain(x), legacy(x))
    other = adapted(nn.Conv2d(4, 6, 3))[1]
    message = "layer: kind convolution_0_1 in the adapter, convolution in the model"
    expect_refusal(lora.AttachError, message, other, lambda: lora.attach(other, adapter))
    lora.eject(plain)
    assert not vars(plain.layer).keys() - vars(nn.Conv2d(4, 6, 3)).keys()


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 6, (3, 2)), nn.Conv2d(4, 5, 3), nn.Conv1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3)]
)
def test_the_form_of_0_1_does_not_fit_other_weights(layer):
    adapter = lora.extract(Holder(fill(lora.Conv2d(4, 6, 3, r=2, merge_weights=False))))
    model = Holder(layer)
    expect_refusal(lora.AttachError, "layer: ", model, lambda: lora.attach(model, adapter))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_convolutions_are_refused():
    model = Holder(nn.LazyConv2d(6, 3))
    with pytest.raises(lora.TargetError, match="its shape is not known yet"):
        lora.inject(model, lora.LoRAConfig(r=2, target_modules=["layer"]))
    model(torch.randn(1, 4, 5, 5))
    assert lora.inject(model, lora.LoRAConfig(r=2, target_modules=["layer"])) == ["layer"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_shared_convolution_is_merged_once(dtype, transposed):
    layer = (nn.ConvTranspose1d if transposed else nn.Conv1d)(4, 4, 3, padding=1).to(dtype)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"]), dtype=dtype)
    fill(model)
    x, W = torch.randn(2, 4, 5).to(dtype), bits(layer.weight)
    y = model(x)
    lora.merge(model)
    assert close(model(x), y, factor=64)
    lora.unmerge(model)
    assert bits(layer.weight) == W


def test_a_named_input_keeps_the_arguments_beside_it():
    layer, x = lora.ConvLoRA(nn.ConvTranspose1d, 4, 6, 3, r=2, stride=2), torch.randn(2, 4, 5)
    for name in ("x", "input"):
        assert layer(output_size=[12], **{name: x}).shape == (2, 6, 12)
        assert layer(**{name: x}).shape == (2, 6, 11)
