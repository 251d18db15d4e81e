"""Inside `use("onednn")` every frozen float32 product on the CPU is oneDNN's, and nothing else changes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import loralib as lora
from loralib import ops
from loralib.ops import onednn


@pytest.fixture
def products(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the weights of all products that oneDNN was asked for."""
    taken: list[tuple[int, ...]] = []
    inner = onednn.product

    def counted(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        taken.append(tuple(W.shape))
        return inner(x, W, b)

    monkeypatch.setattr(onednn, "product", counted)
    monkeypatch.setattr(ops.autograd.gemm, "product", counted)
    return taken


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *trained])]


def frozen(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules).requires_grad_(False)


def test_frozen_layers_and_those_with_an_update_take_it_forward_and_backward(products):
    model = frozen(nn.Linear(12, 20), nn.Linear(20, 16), Conv1D(8, 16), nn.Linear(8, 6, bias=False))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["1"]))
    x = torch.randn(3, 5, 12)
    plain = gradients(model, x)
    assert not products
    with ops.use("onednn"):
        routed = gradients(model, x)
    assert {(20, 12), (12, 20), (16, 20), (20, 16), (8, 16), (16, 8), (6, 8), (8, 6)} <= set(products)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(routed, plain, strict=True))


@pytest.mark.parametrize("target", ["0", "2"])
def test_outputs_may_be_modified_in_place(target):
    model = frozen(nn.Linear(12, 20), nn.ReLU(inplace=True), nn.Linear(20, 16), nn.ReLU(inplace=True))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=[target]))
    x = torch.randn(300, 2, 12, requires_grad=True)
    plain = gradients(model, x)
    with ops.use("onednn"):
        routed = gradients(model, x)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(routed, plain, strict=True))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.7])
def test_an_update_has_the_same_gradients(p):
    model = frozen(nn.Linear(16, 12))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"], lora_dropout=p))
    nn.init.normal_(model[0].lora_B)
    x = torch.randn(40, 16)
    torch.manual_seed(0)
    plain = gradients(model, x)
    torch.manual_seed(0)
    with ops.use("onednn"):
        routed = gradients(model, x)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(routed, plain, strict=True))


def test_a_trained_bias_gets_its_gradient_and_a_trained_weight_stays_with_torch(products):
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    model[0].weight.requires_grad_(False)
    x = torch.randn(7, 4)
    plain = gradients(model, x)
    with ops.use("onednn"):
        routed = gradients(model, x)
    assert set(products) == {(6, 4), (4, 6)}
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(routed, plain, strict=True))


def test_without_gradients_it_serves_every_layer(products):
    with torch.no_grad(), ops.use("onednn"):
        nn.Linear(4, 6)(torch.randn(3, 4))
    assert products == [(6, 4)]


CASES = {
    "another dtype": lambda: F.linear(torch.randn(3, 4).double(), torch.randn(5, 4).double()),
    "one row without a batch": lambda: F.linear(torch.randn(4), torch.randn(5, 4)),
    "no rows": lambda: F.linear(torch.randn(0, 4), torch.randn(5, 4)),
    "a matrix as bias": lambda: torch.addmm(torch.randn(3, 5), torch.randn(3, 4), torch.randn(4, 5)),
    "alpha": lambda: torch.addmm(torch.randn(5), torch.randn(3, 4), torch.randn(4, 5), alpha=2.0),
    "vmap": lambda: torch.func.vmap(lambda x: F.linear(x, torch.ones(5, 4)))(torch.randn(3, 2, 4)),
    "autocast": lambda: _autocast(F.linear, torch.randn(3, 4), torch.randn(5, 4)),
}


def _autocast(function, *args: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return function(*args)


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_such_a_product_stays_with_torch(case, products):
    torch.manual_seed(0)
    plain = CASES[case]()
    torch.manual_seed(0)
    with ops.use("onednn"):
        routed = CASES[case]()
    assert not products
    assert torch.equal(plain, routed)


def test_wrong_shapes_get_torchs_errors():
    with ops.use("onednn"):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            F.linear(torch.randn(3, 4), torch.randn(5, 6))
        with pytest.raises(RuntimeError, match="size"):
            F.linear(torch.randn(3, 4), torch.randn(5, 4), torch.randn(6))


def test_strided_inputs_and_second_derivatives_are_right():
    W, b = torch.randn(5, 4), torch.randn(5)
    x = torch.randn(4, 6).t().requires_grad_()
    with ops.use("onednn"):
        assert torch.allclose(F.linear(x, W, b), x @ W.t() + b, atol=1e-5)
        (first,) = torch.autograd.grad(F.linear(x, W, b).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    (expected,) = torch.autograd.grad((x @ W.t() + b).pow(3).sum(), x, create_graph=True)
    (expected_second,) = torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(first, expected, rtol=1e-4, atol=1e-3)
    assert torch.allclose(second, expected_second, rtol=1e-4, atol=1e-3)


def test_it_ends_with_the_block_and_inside_another(products):
    layer = frozen(nn.Linear(4, 6))
    with ops.use("onednn"):
        with ops.use("reference"):
            layer(torch.randn(3, 4))
        assert not products
        with pytest.raises(ZeroDivisionError), ops.use("onednn"):
            raise ZeroDivisionError
    layer(torch.randn(3, 4))
    assert not products


@pytest.mark.parametrize("backward_inside", [True, False])
def test_checkpointed_models_train(backward_inside):
    model = frozen(nn.Linear(4, 6), Conv1D(5, 6), nn.Linear(5, 4, bias=False))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["2"]))
    x = torch.randn(3, 4)
    plain = gradients(model, x)
    x.requires_grad_()
    with ops.use("onednn"):
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).square().sum()
        if backward_inside:
            y.backward()
    if not backward_inside:
        y.backward()
    assert torch.allclose(x.grad, plain[1], rtol=1e-4, atol=1e-5)


def test_compilers_see_plain_products():
    model = frozen(nn.Linear(4, 6))
    x = torch.randn(3, 4)
    with ops.use("onednn"):
        compiled = torch.compile(model, backend="eager")
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
