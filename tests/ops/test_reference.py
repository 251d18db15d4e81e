"""LoRA's arithmetic on tensors against dense algebra in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loralib import ops
from models import close, same_bits

SIZE = st.integers(0, 40)


@pytest.fixture(autouse=True)
def of_the_reference():
    with ops.use("reference"):
        yield


@given(n=st.lists(st.integers(0, 3), max_size=3), d=st.integers(1, 40), k=SIZE, r=st.integers(1, 5), scaling=st.floats(-4, 4))
def test_the_update_of_the_output_is_that_of_the_weight(n, d, k, r, scaling):
    x, A, B, y = (torch.randn(*shape, dtype=torch.float64) for shape in ((*n, d), (r, d), (k, r), (*n, k)))
    expected = y + x @ ops.linear_delta(A, B, scaling).t()
    result = ops.add_linear_update(y, x, A, B, scaling)
    assert result.shape == y.shape
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-10)
    assert torch.allclose(ops.linear_delta(A, B, scaling), scaling * B @ A)


def test_derivatives_are_right():
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (2, 4), (2, 4), (3, 2))]
    assert torch.autograd.gradcheck(lambda *t: ops.add_linear_update(*t, 0.7), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: ops.add_linear_update(*t, 0.7), inputs)


def test_nothing_is_changed_in_place():
    tensors = [torch.randn(shape) for shape in ((2, 3), (2, 4), (2, 4), (3, 2))]
    before = [t.clone() for t in tensors]
    ops.add_linear_update(*tensors, 2.0)
    ops.add_strips(tensors[0], [ops.Strip(0, 1, tensors[3][:2, :1], tensors[1][:1, :2])], 2.0)
    assert all(same_bits(t, b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_merge_is_rounded_once(dtype):
    W, delta = torch.randn(50, 50).to(dtype), torch.randn(50, 50) / 64
    merged = ops.add_strips(W, [ops.Strip(0, 0, delta, torch.eye(50))], 1.0)
    assert merged.dtype == dtype
    assert same_bits(merged, (W.double() + delta.double()).to(torch.promote_types(dtype, torch.float32)).to(dtype))
    assert close(merged, (W.double() + delta.double()).to(dtype), factor=0.5)


# --- slices of a fused projection -----------------------------------------------------------------------------------

MASKED = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4).filter(lambda s: any(on for _, on in s))


def dense_slices(A, B, scaling, widths, enabled):
    """ΔW, slice by slice, for A (n·r, d) and B (Σ enabled widths, r)."""
    rows, a, b, r = [], 0, 0, B.shape[1]
    for width, on in zip(widths, enabled, strict=True):
        rows.append(scaling * B[b : b + width] @ A[a : a + r] if on else A.new_zeros(width, A.shape[1]))
        a, b = a + r * on, b + width * on
    return torch.cat(rows)


@given(
    n=st.lists(st.integers(0, 3), max_size=3),
    d=st.integers(1, 40),
    slices=MASKED,
    r=st.integers(1, 5),
    scaling=st.floats(-4, 4),
)
def test_the_update_of_slices_is_that_of_the_weight(n, d, slices, r, scaling):
    widths, enabled = zip(*slices, strict=True)
    k, chosen = sum(widths), sum(width for width, on in slices if on)
    shapes = ((*n, d), (r * sum(enabled), d), (chosen, r), (*n, k))
    x, A, B, y = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    delta = dense_slices(A, B, scaling, widths, enabled)
    assert torch.allclose(ops.linear_delta(A, B, scaling, ops.Slices(widths, enabled)), delta, rtol=1e-12, atol=1e-12)
    result = ops.add_linear_update(y, x, A, B, scaling, slices=ops.Slices(widths, enabled))
    assert result.shape == y.shape
    assert torch.allclose(result, y + x @ delta.t(), rtol=1e-10, atol=1e-10)


def test_without_an_enabled_slice_nothing_is_added():
    A, B, y = torch.empty(0, 3), torch.empty(0, 2), torch.randn(2, 5)
    none = ops.Slices((2, 3), (False, False))
    assert same_bits(ops.add_linear_update(y, torch.randn(2, 3), A, B, 1.5, slices=none), y)
    assert same_bits(ops.linear_delta(A, B, 1.5, none), torch.zeros(5, 3))


@pytest.mark.parametrize("enabled", [(True, False, True), (False, True, False), (True, True, True)])
def test_derivatives_of_slices_are_right(enabled):
    n, widths = sum(enabled), (2, 1, 3)
    k = sum(width for width, on in zip(widths, enabled, strict=True) if on)
    shapes = ((2, 6), (2, 4), (2 * n, 4), (k, 2))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    run = lambda *t: ops.add_linear_update(*t, 0.7, slices=ops.Slices(widths, enabled))  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    run = lambda A, B: ops.linear_delta(A, B, 0.7, ops.Slices(widths, enabled))  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs[2:])


# --- embeddings -----------------------------------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    v=st.integers(1, 20),
    k=st.integers(1, 9),
    r=st.integers(1, 5),
    scaling=st.floats(-4, 4),
    keeping=st.booleans(),
    id_dtype=st.sampled_from([torch.int64, torch.int32]),
)
def test_the_update_of_a_lookup_is_that_of_the_table(shape, v, k, r, scaling, keeping, id_dtype):
    ids = torch.randint(v, shape, dtype=id_dtype)
    A, B, y = (torch.randn(*s, dtype=torch.float64) for s in ((r, v), (k, r), (*shape, k)))
    keep = torch.rand(shape, dtype=torch.float64) if keeping else None
    expected = ops.linear_delta(A, B, scaling).t()[ids.long()]
    result = ops.add_embedding_update(y, ids, A, B, scaling, keep)
    assert result.shape == y.shape
    assert torch.allclose(result, y + (expected if keep is None else expected * keep.unsqueeze(-1)), rtol=1e-10, atol=1e-10)


def test_derivatives_of_lookups_are_right():
    ids, keep = torch.tensor([[0, 2], [2, 3]]), torch.rand(2, 2, dtype=torch.float64)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2, 3), (2, 5), (3, 2))]
    run = lambda y, A, B: ops.add_embedding_update(y, ids, A, B, 0.7, keep)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_by_frequency_divides_the_gradient_of_a_column_by_how_often_it_is_used():
    ids, B, y = torch.tensor([1, 1, 1, 3]), torch.randn(3, 2), torch.zeros(4, 3)
    gradients = []
    for by_frequency in (False, True):
        A = torch.randn(2, 5, requires_grad=True)
        ops.add_embedding_update(y, ids, A, B, 1.0, by_frequency=by_frequency).sum().backward()
        gradients.append(A.grad)
    assert close(gradients[0], gradients[1] * torch.tensor([1, 3, 1, 1, 1]), factor=4)


# --- convolutions ---------------------------------------------------------------------------------------------------


@given(
    dims=st.integers(1, 3),
    n=st.sampled_from([None, 0, 1, 2]),
    groups=st.integers(1, 3),
    width=st.integers(1, 4),
    r=st.integers(1, 4),
    scaling=st.floats(-4, 4),
)
def test_the_second_factor_of_a_convolution_mixes_the_channels_of_its_group(dims, n, groups, width, r, scaling):
    batch, size = [] if n is None else [n], [3, 2, 2][:dims]
    t = torch.randn(*batch, groups * r, *size, dtype=torch.float64)
    B = torch.randn(groups * width, r, *[1] * dims, dtype=torch.float64)
    y = torch.randn(*batch, groups * width, *size, dtype=torch.float64)
    parts = zip(t.split(r, dim=-dims - 1), B.flatten(1).split(width), strict=True)
    flat = [torch.einsum("kr,...rs->...ks", b, part.flatten(-dims)) for part, b in parts]
    expected = y + scaling * torch.cat(flat, dim=-2).reshape(y.shape)
    result = ops.add_pointwise(y, t, B, scaling, groups)
    assert result.shape == y.shape
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-10)


def test_derivatives_of_the_second_factor_are_right():
    shapes = ((1, 4, 3), (1, 4, 3), (4, 2, 1))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    run = lambda y, t, B: ops.add_pointwise(y, t, B, 0.7, groups=2)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("kernel", [(), (3,), (2, 3), (1, 2, 3)])
def test_the_delta_of_a_kernel_is_a_sum_of_outer_products(kernel):
    A, B = torch.randn(2, 4, *kernel, dtype=torch.float64), torch.randn(5, 2, *[1] * len(kernel), dtype=torch.float64)
    expected = 0.7 * torch.stack([sum(b * a for b, a in zip(row, A, strict=True)) for row in B.flatten(1)])
    assert ops.linear_delta(A, B, 0.7).shape == (5, 4, *kernel)
    assert torch.allclose(ops.linear_delta(A, B, 0.7), expected)


# --- all of them ----------------------------------------------------------------------------------------------------

IDS = torch.tensor([0, 2, 2])
CALLS = {
    "linear": (lambda y, x, A, B: ops.add_linear_update(y, x, A, B, 1.5), ((3, 6), (3, 4), (2, 4), (6, 2))),
    "slices": (
        lambda y, x, A, B: ops.add_linear_update(y, x, A, B, 1.5, slices=ops.Slices((2, 4), (False, True))),
        ((3, 6), (3, 4), (2, 4), (4, 2)),
    ),
    "embedding": (lambda y, keep, A, B: ops.add_embedding_update(y, IDS, A, B, 1.5, keep), ((3, 6), (3,), (2, 5), (6, 2))),
    "convolution": (lambda y, t, B: ops.add_pointwise(y, t, B, 1.5, groups=2), ((2, 6, 3), (2, 4, 3), (6, 2, 1))),
    "expanded": (lambda y, t, B: ops.add_expanded(y, t, B, 1.5), ((3, 6), (3, 2), (6, 2))),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_argument_of_any_of_them_is_changed(call):
    run, tensors = CALLS[call][0], [torch.randn(shape) for shape in CALLS[call][1]]
    before = [t.clone() for t in tensors]
    run(*tensors)
    assert all(same_bits(t, b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", CALLS)
def test_the_result_has_the_dtype_of_what_is_added_to(call, dtype, factors):
    run, tensors = CALLS[call][0], [torch.randn(shape) for shape in CALLS[call][1]]
    cut = 1 if call in ("convolution", "expanded") else 2
    low = (*(t.to(dtype) for t in tensors[:-cut]), *(t.to(factors) for t in tensors[-cut:]))
    result = run(*low)
    assert result.dtype == dtype
    coarse = max((dtype, factors), key=lambda t: torch.finfo(t).eps)
    assert close(result.to(coarse), run(*tensors).to(coarse), factor=16)
