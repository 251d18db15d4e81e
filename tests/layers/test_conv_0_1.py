"""loralib 0.1's convolutions: its constructors, factors, keys and `layer.conv`."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import loralib as lora
from kinds import DTYPES, Holder, agrees, fill
from models import close, expect_refusal, same_bits

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*larger than both sides"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


def test_the_factors_of_0_1_have_its_shapes_and_a_larger_rank():
    layer = fill(lora.Conv2d(8, 10, 3, r=2, groups=2)).double()
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((6, 24), (15, 6))
    assert isinstance(layer.update, lora.LegacyConvolutionUpdate)
    assert torch.linalg.matrix_rank(layer.update.delta().flatten(1)) > 2


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


def test_a_transposed_convolution_of_0_1_goes_to_files_that_can_hold_it_and_back(tmp_path):
    model = nn.Sequential(lora.ConvLoRA(nn.ConvTranspose2d, 4, 6, 3, r=2, lora_alpha=3, groups=2))
    nn.init.normal_(model[0].lora_B)
    adapter = lora.extract(model)
    lora.save(adapter, tmp_path / "a.safetensors", format="safetensors")
    assert lora.load(tmp_path / "a.safetensors") == adapter
    lora.save(adapter, tmp_path / "a.pt", format="loralib")
    fresh = nn.Sequential(lora.ConvLoRA(nn.ConvTranspose2d, 4, 6, 3, r=2, lora_alpha=3, groups=2))
    fresh.load_state_dict(torch.load(tmp_path / "a.pt"), strict=False)
    assert lora.extract(fresh) == adapter
    with pytest.raises(lora.FormatError, match="is for a transposed convolution"):
        lora.save(adapter, tmp_path / "peft", format="peft")
    with pytest.raises(lora.AlgebraError, match="has no plain form"):
        adapter.layers["0"].plain()
    with pytest.raises(lora.AttachError, match="transposed_convolution_0_1 in the adapter, convolution_0_1 in the model"):
        lora.attach(nn.Sequential(lora.Conv2d(4, 6, 3, r=2)), adapter)
