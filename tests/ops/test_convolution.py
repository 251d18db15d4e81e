"""A fused step of a convolution gives the plain one's numbers for every geometry and layout, and keeps what it says."""

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from loralib import ops
from loralib.ops import autograd, reference
from loralib.ops.autograd import dropout
from steps import DTYPES, as_good, doubled, kept, step

GEOMETRIES = {
    "plain": (2, ops.Geometry((1, 1), (1, 1), (1, 1), False, (0, 0), 1)),
    "strided": (2, ops.Geometry((2, 1), (0, 2), (1, 1), False, (0, 0), 1)),
    "dilated, in groups": (2, ops.Geometry((1, 1), (2, 2), (2, 2), False, (0, 0), 2)),
    "transposed": (2, ops.Geometry((2, 2), (1, 0), (1, 1), True, (1, 0), 1)),
    "transposed, in groups": (1, ops.Geometry((2,), (1,), (2,), True, (1,), 3)),
    "one dimension": (1, ops.Geometry((1,), (1,), (1,), False, (0,), 1)),
    "three dimensions": (3, ops.Geometry((1, 2, 1), (1, 1, 0), (1, 1, 1), False, (0, 0, 0), 1)),
}


def drawn(
    name: str, dtype: torch.dtype, bias: bool = True, r: int = 2, n: int = 3
) -> tuple[dict[str, Tensor | None], ops.Geometry]:
    dimensions, geometry = GEOMETRIES[name]
    g, kernel, d, k = geometry.groups, (3, 2, 2)[:dimensions], 6, 12
    shapes = {"x": (n, d, *(5, 6, 4)[:dimensions]), "W": (k, d // g, *kernel), "b": (k,), "A": (g * r, d // g, *kernel)}
    if geometry.transposed:
        shapes |= {"W": (d, k // g, *kernel), "A": (d, r, *kernel)}
    shapes["B"] = (k, r, *[1] * dimensions)
    made = {key: torch.randn(shape).to(dtype).requires_grad_() for key, shape in shapes.items()}
    return made | {"b": made["b"] if bias else None}, geometry


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_step_is_as_exact_as_the_plain_formula(name, dtype, bias):
    tensors, geometry = drawn(name, dtype, bias)
    exact = step(reference.lora_convolution, doubled(tensors), 0.7, geometry)
    mine, plain = (step(module.lora_convolution, tensors, 0.7, geometry) for module in (autograd, reference))
    assert as_good(mine, plain, exact)


@pytest.mark.parametrize("name", ["plain", "strided", "dilated, in groups", "transposed", "three dimensions"])
def test_channels_last_gives_the_same_and_stays(name):
    tensors, geometry = drawn(name, torch.float32)
    layout = torch.channels_last_3d if name == "three dimensions" else torch.channels_last
    last = {
        k: t if t is None or t.dim() < 4 else t.detach().to(memory_format=layout).requires_grad_() for k, t in tensors.items()
    }
    y = autograd.lora_convolution(**last, scaling=0.7, geometry=geometry)
    plain = reference.lora_convolution(**tensors, scaling=0.7, geometry=geometry)
    assert torch.allclose(y, plain, rtol=1e-4, atol=1e-4)
    base = reference.convolve(last["x"], last["W"], None, geometry)
    assert y.is_contiguous(memory_format=layout) == base.is_contiguous(memory_format=layout) or geometry.groups > 1
    dY = torch.randn_like(y)
    mine = torch.autograd.grad(y, list(last.values()), dY)
    theirs = torch.autograd.grad(plain, list(tensors.values()), dY)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_first_and_second_derivatives(name, p, monkeypatch):
    tensors, geometry = drawn(name, torch.float64, r=1, n=1)
    mask = torch.rand(tensors["x"].shape) < 0.4
    monkeypatch.setattr(dropout, "draw", lambda x, p: (mask, mask) if p else (None, None))

    def operation(*given: Tensor) -> Tensor:
        return autograd.lora_convolution(*given, 0.7, geometry, p)

    inputs = tuple(tensors.values())
    assert torch.autograd.gradcheck(operation, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(operation, inputs, fast_mode=True)


@pytest.mark.parametrize("frozen", ["x", "W", "b", "A", "B"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen):
    tensors, geometry = drawn("plain", torch.float64)
    gradients = []
    for module in (autograd, reference):
        given = {name: t.detach().clone().requires_grad_(name != frozen) for name, t in tensors.items()}
        module.lora_convolution(**given, scaling=0.7, geometry=geometry).square().sum().backward()
        assert given[frozen].grad is None
        gradients.append([t.grad for name, t in given.items() if name != frozen])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_with_a_frozen_first_factor_a_second_derivative_is_refused_not_wrong():
    tensors, geometry = drawn("plain", torch.float32)
    for name in "WA":
        tensors[name].requires_grad_(False)
    y = autograd.lora_convolution(**tensors, scaling=0.7, geometry=geometry)
    with pytest.raises(lora.LayerError, match="cannot be differentiated again"):
        torch.autograd.grad(y.square().sum(), tensors["B"], create_graph=True)


def layer_of(dtype: torch.dtype = torch.float32, **config) -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1).to(dtype)).requires_grad_(False)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"], **config), dtype)
    nn.init.normal_(model[0].lora_B)
    return model[0], torch.randn(4, 6, 10, 10).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_keeps_the_input_and_the_small_channels(dtype):
    layer, x = layer_of(dtype)
    assert kept(lambda: layer(x)) == {dtype: 4 * 6 * 100 + 4 * 2 * 100}


def test_dropout_keeps_a_byte_for_each_dropped_element():
    layer, x = layer_of(lora_dropout=0.25)
    found = kept(lambda: layer(x))
    assert abs(found.pop(torch.uint8) - 600) < 6 * 600**0.5
    assert found == {torch.float32: 4 * 6 * 100 + 4 * 2 * 100}


def test_the_gradient_sees_the_dropout_of_the_forward_pass():
    layer, x = layer_of(lora_dropout=0.25)
    y = layer(x)
    (dX,) = torch.autograd.grad((y * torch.arange(8.0).view(8, 1, 1)).sum(), x)
    layer.eval()
    (without,) = torch.autograd.grad((layer(x) * torch.arange(8.0).view(8, 1, 1)).sum(), x)
    with lora.disabled(nn.Sequential(layer)):
        (base,) = torch.autograd.grad((layer(x) * torch.arange(8.0).view(8, 1, 1)).sum(), x)
    ratio = (dX - base) / (without - base)
    dropped = ratio.abs() < 1e-3
    assert torch.allclose(ratio[~dropped], torch.tensor(1 / 0.75), rtol=1e-2)
    assert abs(float(dropped.float().mean()) - 0.25) < 0.06


def test_an_input_without_a_batch():
    layer, x = layer_of()
    assert torch.allclose(layer(x[0]), layer(x)[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # torch's own
@pytest.mark.parametrize("padding", ["same", "valid", 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_every_padding_is_the_bases(padding, mode, kernel):
    model = nn.Sequential(nn.Conv1d(4, 6, kernel, padding=padding, padding_mode=mode))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"]))
    nn.init.normal_(model[0].lora_B)
    x = torch.randn(3, 4, 9)
    unmerged = model(x)
    with lora.merged(model):
        assert torch.allclose(model(x), unmerged, atol=1e-5)


def test_autocast_computes_in_its_dtype():
    layer, x = layer_of()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        with ops.use("reference"):
            plain = layer(x)
    assert y.dtype == plain.dtype == torch.bfloat16
    assert torch.allclose(y.float(), plain.float(), rtol=0.02, atol=0.05)


def test_what_does_not_go_together_is_named():
    layer, x = layer_of()
    with pytest.raises(lora.LayerError, match=r"Conv2d.*the input is torch\.float64 and the weight torch\.float32"):
        layer(x.double())
    with pytest.raises(lora.LayerError, match=r"the input has shape \(4, 5, 10, 10\), and the layer takes 6 channels and 2"):
        layer(x[:, 1:])
    with pytest.raises(lora.LayerError, match=r"the input has shape \(6, 10\)"):
        layer(x[0, :, 0])
    layer.lora_A = nn.Parameter(layer.lora_A.detach().to("meta"))
    assert "not all on one device: the input on cpu, the weight on cpu, lora_A on meta" in layer.mismatch(x)
