"""Updates of convolutions of one, two and three dimensions, forward and transposed."""

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
