"""A step with dropout that a compiler traces: the same numbers, the right draws, and graphs that hold it whole."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import loralib as lora
from loralib import ops
from loralib.ops import compiled, reference
from steps import as_good

P = 0.25


def graphs(function, *inputs):
    """The operations of the graph that a compiler sees, and the result."""
    seen: list[str] = []

    def backend(graph, example):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    return seen, torch.compile(function, fullgraph=True, backend=backend)(*inputs)


def linear(x, W, b, A, B, scaling=0.7, p=P, slices=None):
    return ops.lora_linear(x, W, b, A, B, scaling, p, slices)


@pytest.fixture
def compile_linear():
    """`linear`, traced forward and backward."""
    torch._dynamo.reset()
    return torch.compile(linear, fullgraph=True, backend="aot_eager")


def drawn(n: tuple[int, ...], d: int, k: int, r: int, dtype=torch.float32) -> dict[str, Tensor]:
    shapes = {"x": (*n, d), "W": (k, d), "b": (k,), "A": (r, d), "B": (k, r)}
    return {name: torch.randn(shape, dtype=dtype).requires_grad_(name in ("x", "A", "B")) for name, shape in shapes.items()}


def masked(mask: Tensor):
    """The reference with the elements of a mask dropped."""

    def formula(x, W, b, A, B, scaling=0.7, p=P, slices=None):
        dropped = x.masked_fill(mask, 0)
        return reference.add_linear_update(nn.functional.linear(x, W, b), dropped, A, B, scaling / (1 - p), 0.0, slices)

    return formula


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_as_exact_as_the_plain_formula(compile_linear, monkeypatch, dtype, bias):
    tensors = drawn((3, 5), 7, 6, 2, dtype) | ({} if bias else {"b": None})
    mask = torch.rand(15, 7) < P
    monkeypatch.setattr(compiled, "_places", lambda x, seed, p: mask)
    plain = masked(mask.view(3, 5, 7))
    given = [name for name, t in tensors.items() if t is not None and t.requires_grad]

    def outcome(function, tensors):
        y = function(**tensors)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [tensors[name] for name in given])]

    wide = {name: t if t is None else t.detach().double().requires_grad_(t.requires_grad) for name, t in tensors.items()}
    assert as_good(outcome(compile_linear, tensors), outcome(plain, tensors), outcome(plain, wide))


def test_slices_and_frozen_factors(compile_linear, monkeypatch):
    slices, mask = ops.Slices((4, 2, 4), (True, False, True)), torch.rand(6, 5) < P
    monkeypatch.setattr(compiled, "_places", lambda x, seed, p: mask)
    tensors = drawn((6,), 5, 10, 2) | {"A": torch.randn(4, 5), "B": torch.randn(8, 2).requires_grad_()}
    x, B = tensors["x"], tensors["B"]
    found, wanted = (
        torch.autograd.grad(function(**tensors, slices=slices).square().sum(), [x, B])
        for function in (compile_linear, masked(mask))
    )
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("n", "p"), [(400, 0.1), (400, 0.7), (3, 0.1)])
def test_each_call_draws_anew_and_both_passes_drop_the_same(compile_linear, n, p):
    d = 50
    x, eye = torch.ones(n, d, requires_grad=True), torch.eye(d)
    A, B = eye.clone().requires_grad_(), eye.clone().requires_grad_()
    call = lambda: compile_linear(x, torch.zeros(d, d), None, A, B, 1 - p, p)  # noqa: E731
    torch.manual_seed(3)
    first, second = call(), call()
    torch.manual_seed(3)
    assert torch.equal(call(), first)
    if n > 3:
        assert not torch.equal(first, second)
        assert abs((first == 0).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / (n * d))
    assert set(first.unique().tolist()) <= {0.0, 1.0}
    for y in (first, second):
        (dX,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        assert torch.equal(dX, y)


def test_operations_hold_what_torch_asks_of_them():
    seed = torch.tensor([5])
    x, W, b, A, B = drawn((40,), 120, 6, 2).values()
    torch.library.opcheck(compiled._step, (x, W, b, A, B, seed, 0.7, 0.1))
    low = (t.detach() for t in drawn((40,), 120, 6, 2, torch.bfloat16).values())
    x, W, b, A, B = (t.requires_grad_(wanted) for t, wanted in zip(low, (False, False, False, True, True), strict=True))
    torch.library.opcheck(compiled._step, (x, W, None, A, B, seed, 0.7, 0.6))
    x, W, b, A, B = (t.detach() for t in drawn((40,), 120, 6, 2).values())
    t, dY = torch.randn(40, 2), torch.randn(40, 6)
    for needed in ((True, True, True), (True, False, False), (False, True, False)):
        given = (dY, x, W, A, B, t, seed, 0.7, 0.1, *needed)
        torch.library.opcheck(compiled._gradients, given, test_utils=("test_schema", "test_faketensor"))


def test_a_layer_in_a_graph_is_one_operation_in_training_and_plain_otherwise():
    layer = lora.Linear(32, 16, r=4, lora_dropout=0.1, merge_weights=False)
    x = torch.randn(3, 32)
    seen, _ = graphs(layer, x)
    assert [name for name in seen if "loralib" in name] == ["loralib.dropped_linear.default"]
    assert not [name for name in seen if "dropout" in name]
    assert not [name for name in graphs(layer.eval(), x)[0] if "loralib" in name]
    layer.train()
    layer.weight.requires_grad_(True)
    seen, _ = graphs(layer, x)
    assert [name for name in seen if "dropout" in name]


def test_a_bias_that_is_trained_has_its_gradient(compile_linear, monkeypatch):
    tensors, mask = drawn((6,), 5, 10, 2), torch.rand(6, 5) < P
    b = tensors["b"].requires_grad_()
    monkeypatch.setattr(compiled, "_places", lambda x, seed, p: mask)
    found, wanted = (torch.autograd.grad(f(**tensors).square().sum(), b) for f in (compile_linear, masked(mask)))
    assert torch.allclose(*found, *wanted, rtol=1e-4)


def test_autocast_computes_in_its_dtype():
    layer = lora.Linear(32, 16, r=4, lora_dropout=0.1, merge_weights=False)

    def cast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    seen, y = graphs(cast, torch.randn(3, 32))
    assert "loralib.dropped_linear.default" in seen
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.lora_A.grad.dtype == torch.float32


def test_factors_of_higher_precision_get_gradients_of_theirs(compile_linear):
    x, W, b, A, B = drawn((40,), 64, 32, 4).values()
    x, W, b = (t.detach().bfloat16() for t in (x, W, b))
    y = compile_linear(x, W, b, A, B)
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in torch.autograd.grad(y.sum(), [A, B])] == [torch.float32] * 2


def test_a_recomputed_block_drops_what_it_dropped(compile_linear):
    W, b = torch.zeros(16, 64), torch.zeros(16)
    x, _, _, A, B = drawn((80,), 64, 16, 4).values()

    def block(x):
        return checkpoint(lambda x: ops.lora_linear(x, W, b, A, B, 0.7, 0.2), x, use_reentrant=False)

    torch._dynamo.reset()
    y = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    (dB,) = torch.autograd.grad(y.sum(), B)
    assert torch.allclose((dB * B).sum(), y.sum(), rtol=1e-4)  # y is linear in B, with the mask of the forward pass


def test_exported_graphs_hold_torchs_own_operations():
    layer = lora.Linear(32, 16, r=4, lora_dropout=0.1, merge_weights=False)
    for strict in (False, True):
        exported = torch.export.export(layer, (torch.randn(3, 32),), strict=strict)
        targets = [str(node.target) for node in exported.graph.nodes]
        assert not [name for name in targets if "loralib" in name]
        assert [name for name in targets if "dropout" in name]


def test_torch_func_in_a_graph_has_the_plain_form():
    x, W, b, A, B = drawn((8,), 12, 6, 2).values()
    torch._dynamo.reset()

    def loss(A):
        return ops.lora_linear(x.detach(), W, b, A, B.detach(), 0.7, 0.2).square().sum()

    found = torch.compile(torch.func.grad(loss), backend="aot_eager")(A.detach())
    assert found.shape == A.shape
    assert found.isfinite().all()


def test_what_is_refused_without_a_compiler_is_refused_with_it(compile_linear):
    x, W, b, A, B = drawn((8,), 12, 6, 2).values()
    with pytest.raises(RuntimeError, match="dtype"):
        compile_linear(x, W.bfloat16(), b.bfloat16(), A, B)


def test_weights_that_are_not_plain_tensors_have_the_plain_form():
    class Marked(Tensor):
        pass

    x, W, b, A, B = (t.detach() for t in drawn((8,), 12, 6, 2).values())
    seen, _ = graphs(linear, x, W.as_subclass(Marked), b, A, B)
    assert not [name for name in seen if "loralib" in name]
