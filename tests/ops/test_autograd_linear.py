"""The fused operations give the reference's numbers, keep what they say, and stand aside where they cannot compute."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import loralib as lora
from loralib import ops
from loralib.ops import autograd, reference
from loralib.ops.autograd import dropout
from steps import DTYPES, LOW, as_good, doubled, kept, step

SIZES = st.sampled_from([1, 2, 3, 5, 17, 123])


def drawn(n, d: int, k: int, r: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> dict[str, Tensor | None]:
    """Tensors of a linear step, each requiring a gradient."""
    shapes = {"x": (*n, d), "W": (k, d), "b": (k,), "A": (r, d), "B": (k, r)}
    made = {name: torch.randn(shape).to(dtype).requires_grad_() for name, shape in shapes.items()}
    return made | {"b": made["b"] if bias else None}


# --- the same numbers -----------------------------------------------------------------------------------------------


@given(
    n=st.lists(st.integers(1, 5), max_size=3),
    d=SIZES,
    k=SIZES,
    r=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
)
def test_a_linear_step_is_as_exact_as_the_plain_formula(n, d, k, r, dtype, bias):
    tensors = drawn(n, d, k, r, dtype, bias)
    exact = step(reference.lora_linear, doubled(tensors), 0.7)
    assert as_good(step(autograd.lora_linear, tensors, 0.7), step(reference.lora_linear, tensors, 0.7), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [((400,), 5, 7, 3), ((2, 200), 17, 3, 2), ((300, 1), 1, 1, 1)])
def test_many_tokens_are_as_exact_too(shape, dtype):
    tensors = drawn(*shape, dtype)
    exact = step(reference.lora_linear, doubled(tensors), 0.7)
    assert as_good(step(autograd.lora_linear, tensors, 0.7), step(reference.lora_linear, tensors, 0.7), exact)


@given(n=st.lists(st.integers(1, 5), max_size=3), d=SIZES, k=SIZES, r=st.integers(1, 9), dtype=st.sampled_from(DTYPES))
def test_an_update_of_an_output_is_as_exact_as_the_plain_formula(n, d, k, r, dtype):
    made = drawn(n, d, k, r, dtype)
    tensors = {"y": torch.randn(*n, k).to(dtype), "x": made["x"], "A": made["A"], "B": made["B"]}
    exact = step(reference.add_linear_update, doubled(tensors), 0.7)
    assert as_good(step(autograd.add_linear_update, tensors, 0.7), step(reference.add_linear_update, tensors, 0.7), exact)


MASKS = [((4, 4, 4), (True, False, True)), ((8, 2, 2), (False, True, True)), ((5, 1), (True, True)), ((3, 9), (False, True))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("widths", "enabled"), MASKS)
@pytest.mark.parametrize("fused_base", [True, False])
def test_slices_are_as_exact_as_the_plain_formula(widths, enabled, dtype, fused_base):
    n, r, rows = sum(enabled), 2, sum(w for w, on in zip(widths, enabled, strict=True) if on)
    shapes = {"x": (3, 5), "W": (sum(widths), 5), "b": (sum(widths),), "A": (n * r, 5), "B": (rows, r)}
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    slices = ops.Slices(widths, enabled)
    mine, plain = ops.lora_linear, reference.lora_linear
    if not fused_base:
        tensors = {"y": torch.randn(3, sum(widths)).to(dtype)} | {name: tensors[name] for name in ("x", "A", "B")}
        mine, plain = ops.add_linear_update, reference.add_linear_update
    exact = step(plain, doubled(tensors), 0.7, 0.0, slices)
    assert as_good(step(mine, tensors, 0.7, 0.0, slices), step(plain, tensors, 0.7, 0.0, slices), exact)


@pytest.mark.parametrize("dtype", LOW)
def test_factors_of_higher_precision_get_gradients_of_theirs(dtype):
    tensors = drawn((4,), 6, 5, 2)
    low = {name: t.detach().to(dtype) if name in "xWb" else t for name, t in tensors.items()}
    results = step(autograd.lora_linear, low, 0.7)
    assert [t.dtype for t in results] == [dtype, dtype, dtype, dtype, torch.float32, torch.float32]
    exact = step(reference.lora_linear, doubled(low), 0.7)
    assert as_good(results, step(reference.lora_linear, low, 0.7), exact)


def test_autocast_computes_in_its_dtype():
    tensors = drawn((4,), 6, 5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        mine, plain = (step(linear, tensors, 0.7) for linear in (ops.lora_linear, reference.lora_linear))
    assert [t.dtype for t in mine] == [t.dtype for t in plain]
    assert as_good(
        [t.bfloat16() for t in mine], [t.bfloat16() for t in plain], step(reference.lora_linear, doubled(tensors), 0.7)
    )


def test_inputs_need_not_be_contiguous():
    x, W, b, A, B = drawn((6,), 8, 5, 2).values()
    for strided in (x.detach().repeat(1, 2)[:, ::2], torch.randn(8, 6).t(), torch.randn(2, 8, 3).transpose(1, 2)):
        assert torch.allclose(
            autograd.lora_linear(strided, W, b, A, B, 0.7), reference.lora_linear(strided, W, b, A, B, 0.7), atol=1e-5
        )
    autograd.lora_linear(x, W, b, A, B, 0.7).sum().backward()  # whose gradient is expanded from one number
    assert x.grad is not None


# --- derivatives ----------------------------------------------------------------------------------------------------


def fixed_dropout(monkeypatch, kind: str) -> None:
    mask = torch.rand(7, 4) < 0.4
    mask[0, 1] = True
    places = mask.flatten().nonzero().flatten()
    gaps = places.diff(prepend=torch.zeros(1, dtype=torch.int64)).to(torch.uint8)
    drawn = (mask, mask) if kind == "mask" else (gaps, places)
    monkeypatch.setattr(dropout, "draw", lambda x, p: drawn if p else (None, None))


@pytest.mark.parametrize("form", ["split", "effective", "mask", "positions", "no bias"])
def test_first_and_second_derivatives_of_a_linear_step(form, monkeypatch):
    fixed_dropout(monkeypatch, form)
    n, d, k = (7, 4, 5) if form != "effective" else (7, 2, 3)
    tensors = drawn((n,), d, k, 2, torch.float64, bias=form != "no bias")
    p = 0.4 if form in ("mask", "positions") else 0.0
    named = [name for name, t in tensors.items() if t is not None]

    def operation(*given):
        return autograd.lora_linear(**{"b": None} | dict(zip(named, given, strict=True)), scaling=0.7, p=p)

    inputs = tuple(tensors[name] for name in named)
    assert torch.autograd.gradcheck(operation, inputs)
    assert torch.autograd.gradgradcheck(operation, inputs)


def test_first_and_second_derivatives_of_the_other_updates(monkeypatch):
    fixed_dropout(monkeypatch, "positions")
    _, _, _, A, B = drawn((7,), 4, 5, 2, torch.float64).values()
    x, y = torch.randn(7, 4).double().requires_grad_(), torch.randn(7, 5).double().requires_grad_()
    cases = [(lambda y, x, A, B: autograd.add_linear_update(y, x, A, B, 0.7, 0.4), (y, x, A, B))]
    ids, keep = torch.tensor([0, 3, 3, 1, 0, 0, 2]), torch.rand(7).double()
    cases += [(lambda y, A, B: autograd.add_embedding_update(y.clone(), ids, A, B, 0.7, keep), (y, A, B))]
    for operation, inputs in cases:
        assert torch.autograd.gradcheck(operation, inputs)
        assert torch.autograd.gradgradcheck(operation, inputs)


@pytest.mark.parametrize("frozen", ["x", "W", "b", "A", "B"])
@pytest.mark.parametrize("shape", [((3,), 5, 4, 2), ((90,), 5, 4, 2)])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen, shape):
    tensors = drawn(*shape, torch.float64)
    gradients = []
    for module in (autograd, reference):
        given = {name: t.detach().clone().requires_grad_(name != frozen) for name, t in tensors.items()}
        module.lora_linear(**given, scaling=0.7).square().sum().backward()
        assert given[frozen].grad is None
        gradients.append([t.grad for name, t in given.items() if name != frozen])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_with_a_frozen_first_factor_a_second_derivative_is_refused_not_wrong():
    tensors = drawn((3,), 5, 4, 2)
    tensors["A"].requires_grad_(False)
    tensors["W"].requires_grad_(False)
    y = autograd.lora_linear(**tensors, scaling=0.7)
    with pytest.raises(lora.LayerError, match="cannot be differentiated again"):
        torch.autograd.grad(y.square().sum(), tensors["B"], create_graph=True)


@pytest.mark.parametrize("n", [(), (400,), (4, 100), (2, 2, 100)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("operation", [autograd.lora_linear, autograd.add_linear_update])
def test_an_output_may_be_modified_in_place_and_differentiated_twice(operation, n, dtype, p):
    tensors = drawn(n, 16, 12, 3, dtype)
    if operation is autograd.add_linear_update:
        tensors = {"y": torch.randn(*n, 12).to(dtype)} | {name: tensors[name] for name in ("x", "A", "B")}
    seed = torch.get_rng_state()

    def residual(*args: Tensor) -> Tensor:
        y = operation(*args, 0.7, p)
        y += 2
        return torch.relu_(y)

    in_place = step(residual, tensors)
    torch.set_rng_state(seed)
    plain = step(lambda *args: torch.relu(operation(*args, 0.7, p) + 2), tensors)
    assert all(torch.equal(a, b) for a, b in zip(in_place, plain, strict=True))
    if dtype == torch.float64 and not p:
        tensors = [t.detach().clone().requires_grad_() for t in tensors.values()]
        first = torch.autograd.grad(residual(*tensors).square().sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
        expected = torch.autograd.grad(
            sum(
                g.square().sum()
                for g in torch.autograd.grad(
                    torch.relu(getattr(reference, operation.__name__)(*tensors, 0.7) + 2).square().sum(),
                    tensors,
                    create_graph=True,
                )
            ),
            tensors,
        )
        assert all(torch.allclose(a, b) for a, b in zip(second, expected, strict=True))


@pytest.mark.slow
def test_a_compiled_residual_in_place_has_the_same_gradients():
    model = nn.Sequential(lora.Linear(16, 12, r=2, merge_weights=False), nn.ReLU(inplace=True))
    nn.init.normal_(model[0].lora_B)
    x, factors = torch.randn(3, 5, 16), [model[0].lora_A, model[0].lora_B]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, wanted = (torch.autograd.grad(m(x).sum(), factors) for m in (compiled, model))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


# --- what is kept ---------------------------------------------------------------------------------------------------


def frozen_layer(n: int, d: int, k: int, r: int, dtype: torch.dtype = torch.float32, **config) -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(d, k).to(dtype)).requires_grad_(False)
    lora.inject(model, lora.LoRAConfig(r=r, target_modules=["0"], **config))
    return model[0], torch.randn(n, d).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
def test_a_step_keeps_the_input_and_the_small_product(dtype):
    layer, x = frozen_layer(10, 40, 60, 3, dtype)
    assert kept(lambda: layer(x)) == {dtype: 10 * 40 + 10 * 3}


def test_with_many_tokens_it_keeps_the_input_alone():
    layer, x = frozen_layer(200, 40, 60, 3)
    assert kept(lambda: layer(x)) == {torch.float32: 200 * 40}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("p", "integers"), [(0.05, torch.int16), (0.1, torch.uint8), (0.5, torch.uint8)])
def test_dropout_keeps_a_small_integer_for_each_dropped_element(dtype, p, integers):
    layer, x = frozen_layer(200, 40, 60, 3, dtype, lora_dropout=p)
    found = kept(lambda: layer(x))
    gaps, n = found.pop(integers), 8000
    assert found == {dtype: 200 * 40 + 200 * 3}
    assert abs(gaps - n * p) < 6 * math.sqrt(n * p * (1 - p))


def test_much_dropout_keeps_a_byte_an_element():
    layer, x = frozen_layer(200, 40, 60, 3, lora_dropout=0.6)
    assert kept(lambda: layer(x)) == {torch.float32: 200 * 40 + 200 * 3, torch.bool: 200 * 40}


def test_with_a_frozen_first_factor_only_the_small_product_is_kept():
    layer, x = frozen_layer(10, 40, 60, 3)
    layer.lora_A.requires_grad_(False)
    assert kept(lambda: layer(x)) == {torch.float32: 10 * 3}


def test_without_gradients_nothing_is_kept():
    layer, x = frozen_layer(10, 40, 60, 3)
    with torch.no_grad():
        assert kept(lambda: layer(x)) == {}


def test_autocast_keeps_the_low_precision_input():
    layer, x = frozen_layer(10, 40, 60, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert kept(lambda: layer(x)) == {torch.bfloat16: 10 * 40 + 10 * 3}


def test_slices_keep_the_input_and_the_small_products():
    model = nn.Sequential(nn.Linear(40, 60)).requires_grad_(False)
    lora.inject(model, lora.LoRAConfig(r=3, target_modules=["0"], enable_lora=[True, False, True]))
    x = torch.randn(10, 40, requires_grad=True)
    assert kept(lambda: model(x)) == {torch.float32: 10 * 40 + 10 * 6}


# --- dropout --------------------------------------------------------------------------------------------------------


def test_the_gradient_sees_the_dropout_of_the_forward_pass():
    layer, x = frozen_layer(30, 8, 6, 2, lora_dropout=0.2)
    nn.init.normal_(layer.lora_B)
    with torch.no_grad():
        layer.weight.zero_()
    for _ in range(5):
        y = layer(x)
        (kept_x,) = torch.autograd.grad((y @ torch.ones(6, 1)).sum(), x, retain_graph=True)
        full = (layer.lora_B.sum(0) @ layer.lora_A) * layer.scaling / 0.8
        ratio = kept_x / full
        assert torch.allclose(ratio, ratio.round(), atol=1e-4)
        assert torch.allclose((y - layer.bias).sum(1), (x * ratio.round() * full).sum(1), atol=1e-4)


# --- small updates survive ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("bias", [0.0, 1.0])
@pytest.mark.parametrize("size", [3e-3, 1e-3, 3e-4])
def test_the_whole_of_a_small_update_reaches_the_output_and_the_input_gradient(dtype, bias, size):
    d, n, r = 256, 512, 8
    x, dY = torch.randn(n, d).to(dtype), torch.randn(n, d).to(dtype)
    W, b = (torch.randn(d, d) / math.sqrt(d)).to(dtype), torch.full((d,), bias).to(dtype)
    A, B = torch.randn(r, d) / math.sqrt(d), torch.randn(d, r)
    s = size * float(W.float().norm() / (B @ A).norm())
    true, true_dX = (x.float() @ (B @ A).t()) * s, (dY.float() @ (B @ A)) * s

    def computed(scaling: float) -> tuple[Tensor, Tensor]:
        x_ = x.clone().requires_grad_()
        y = autograd.lora_linear(x_, W, b, A.requires_grad_(), B.requires_grad_(), scaling)
        y.backward(dY)
        return y.detach().float(), x_.grad.float()

    (y, dX), base = computed(s), torch.nn.functional.linear(x, W, b).float()
    base_dX = (dY @ W).float()
    for off, update in ((y - base, true), (dX - base_dX, true_dX)):
        slope = float((off * update).sum() / update.square().sum())
        assert abs(slope - 1) < (0.02 if dtype == torch.float16 else 0.1)
