"""Updates of experts: whatever multiplies with their weights, the result is that of W + ΔW, and so are the gradients."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import loralib as lora
from mixtures import CASES, FAMILIES, IMPLEMENTATIONS, Experts, each, fill, logits, mixture, with_weights
from models import expect_refusal, snapshot

WHERE = ["experts.gate_up_proj", "experts.down_proj"]
ROUTED = torch.tensor([[0, 2], [2, 3], [0, 3], [3, 2], [2, 0]])  # nothing is sent to expert 1
FUSED = [(family, how) for family, how in CASES if family != "Llama4"]


def adapted(family: str, how: str = "eager", **config: Any) -> tuple[nn.Module, nn.Module]:
    """A mixture as it is, and with random updates on its experts."""
    plain = mixture(family, how)
    model = copy.deepcopy(plain)
    lora.inject(model, lora.LoRAConfig(**{"r": 2, "lora_alpha": 3, "target_modules": [], "target_parameters": WHERE} | config))
    lora.mark_only_lora_as_trainable(model)
    return plain, fill(model)


def experts_of(model: Any) -> nn.Module:
    found: nn.Module = model.model.layers[-1].mlp.experts
    return found


# --- forward and gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "how"), CASES)
@pytest.mark.parametrize("shared", [None, "A", "B"])
def test_a_mixture_computes_with_its_effective_weights(family: str, how: str, shared: Any) -> None:
    plain, model = adapted(family, how, share_expert_factor=shared)
    expected = logits(with_weights(plain, lora.extract(model)))
    torch.testing.assert_close(logits(model).double(), expected, atol=2e-5, rtol=0)
    lora.merge(model)
    torch.testing.assert_close(logits(model).double(), expected, atol=2e-5, rtol=0)
    assert (logits(plain).double() - expected).abs().max() > 0.1


@pytest.mark.parametrize(("family", "how"), FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_in_float64(family: str, how: str, dtype: torch.dtype) -> None:
    plain, model = adapted(family, how)
    layer, exact = experts_of(model.to(dtype)), experts_of(plain).double()
    exact.config._experts_implementation = "eager"  # type: ignore[union-attr]
    layers = {child.name: child for child in layer.children() if isinstance(child, lora.AdaptedLayer)}
    factors = {
        name: [t.detach().to(dtype).double().requires_grad_() for t in (own.lora_A, own.lora_B)] for name, own in layers.items()
    }
    tensors = {name: p.detach().to(dtype).double() for name, p in exact.named_parameters()}
    for name, (A, B) in factors.items():
        delta = layers[name].scaling * B @ A
        tensors[name] = tensors[name] + (delta.mT if vars(exact).get("is_transposed") else delta)
    x, weights = torch.randn(len(ROUTED), 16, dtype=dtype, requires_grad=True), torch.rand(ROUTED.shape, dtype=dtype)
    wide = x.detach().double().requires_grad_()
    y, expected = layer(x, ROUTED, weights), functional_call(exact, tensors, (wide, ROUTED, weights.double()))
    eps = torch.finfo(dtype).eps
    assert (y.double() - expected).abs().max() <= 32 * eps * (1 + expected.abs().max())
    y.sum().backward()
    expected.sum().backward()
    pairs = [(x.grad, wide.grad)]
    for name, own in layers.items():
        pairs += [(p.grad, g.grad) for p, g in zip((own.lora_A, own.lora_B), factors[name], strict=True)]
    for found, right in pairs:
        assert found is not None
        assert right is not None
        assert (found.double() - right).abs().max() <= 64 * eps * (1 + right.abs().max())
    for own in layers.values():
        assert own.lora_A.grad is not None
        assert [bool(own.lora_A.grad[e].any()) for e in range(4)] == [True, False, True, True]


def by_items(x: Tensor, W: Tensor) -> Tensor:
    return torch.stack([x[e] @ W[torch.tensor(e)].t() for e in range(len(W))])


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": each,
    "items": by_items,
    "unbind": lambda x, W: torch.stack([F.linear(a, w) for a, w in zip(x, W.unbind(0), strict=True)]),
    "iteration": lambda x, W: torch.stack([a @ w.T for a, w in zip(x, W, strict=True)]),
    "bmm": lambda x, W: torch.bmm(x, W.transpose(1, 2)),
    "matmul": lambda x, W: torch.matmul(x, W.mT),
    "from the left": lambda x, W: (W @ x.transpose(1, 2)).transpose(1, 2),
    "permute": lambda x, W: x @ W.permute(0, 2, 1),
    "converted": lambda x, W: torch.bmm(x.double(), W.to(torch.float64).transpose(-1, -2)).float(),
    "gathered": lambda x, W: torch.bmm(x, W[torch.tensor([0, 1, 2])].transpose(1, 2)),
    "index_select": lambda x, W: torch.bmm(x, W.index_select(0, torch.arange(3)).mT),
    "by name": lambda x, W: torch.stack([F.linear(x[e], weight=W[e], bias=None) for e in range(3)]),
    "einsum": lambda x, W: torch.einsum("end,ekd->enk", x, W),
    "reshaped": lambda x, W: torch.stack([a @ w.t() for a, w in zip(x, W.reshape(15, 6).chunk(3), strict=True)]),
    "by other names": lambda x, W: torch.bmm(x, mat2=W.transpose(dim0=1, dim1=2)),
    "added": lambda x, W: torch.baddbmm(torch.ones(3, 4, 5), x, W.transpose(1, 2)) - 1,
    "grouped": lambda x, W: torch._grouped_mm(x.reshape(-1, 6), W.mT, offs=torch.tensor([4, 8, 12], dtype=torch.int32)).view(
        3, 4, 5
    ),
}
DENSE = ("einsum", "reshaped", "added", "by other names")  # what is done with the effective weight


def own_mixture(transposed: bool = False, **config: Any) -> Any:
    model = nn.ModuleDict({"experts": Experts(transposed=transposed)})
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=[], target_parameters=["experts.w1"], **config))
    return fill(model)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "grouped"])
@pytest.mark.parametrize("compute", ["reference", "autograd"])
def test_anything_can_be_done_with_the_weight(way: str, compute: str) -> None:
    torch.manual_seed(0)
    model, x = own_mixture(), torch.randn(3, 4, 6)
    W, update = model["experts"].w1, lora.extract(model).layers["experts.w1"]
    with lora.ops.use(compute):
        y = model["experts"](x, WAYS[way])
    expected = torch.bmm(x, (W + update.delta()).transpose(1, 2))
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    A, B = update.A.requires_grad_(), update.B.requires_grad_()
    torch.bmm(x, (W + update.scaling * B @ A).transpose(1, 2)).square().sum().backward()
    layer = model["experts"].lora_w1
    torch.testing.assert_close(layer.lora_A.grad, A.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.lora_B.grad, B.grad, rtol=1e-4, atol=1e-4)


def test_a_module_may_store_its_matrices_transposed() -> None:
    model, x = own_mixture(transposed=True), torch.randn(3, 4, 6)
    update = lora.extract(model).layers["experts.w1"]
    assert (update.A.shape, update.B.shape) == ((3, 2, 6), (3, 5, 2))
    expected = torch.bmm(x, model["experts"].w1 + update.delta().mT)
    torch.testing.assert_close(model["experts"](x, torch.bmm), expected)
    lora.merge(model, keep=False)
    torch.testing.assert_close(model["experts"](x, torch.bmm), expected)


# --- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "how"), [(family, how) for family, how in CASES if family in ("Qwen3Moe", "GptOss", "Llama4")]
)
def test_dropout_acts_in_training_and_on_the_update_alone(family: str, how: str) -> None:
    plain, model = adapted(family, how, lora_dropout=0.3)
    still = logits(model)
    torch.testing.assert_close(still.double(), logits(with_weights(plain, lora.extract(model))), atol=2e-5, rtol=0)
    model.train()
    torch.manual_seed(1)
    first, second = logits(model), logits(model)
    assert not torch.equal(first, second)
    assert not torch.equal(first, still)
    torch.manual_seed(1)
    assert torch.equal(logits(model), first)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_B"):
                p.zero_()
    torch.testing.assert_close(logits(model), logits(plain.train()))


@pytest.mark.parametrize("way", [way for way in WAYS if way not in (*DENSE, "grouped")])
def test_the_mean_of_dropout_is_no_dropout(way: str) -> None:
    torch.manual_seed(0)
    model, x = own_mixture(lora_dropout=0.5), torch.randn(3, 4, 6)
    with torch.no_grad():
        mean = torch.stack([model["experts"](x, WAYS[way]) for _ in range(4000)]).mean(0)
        exact, plain = model.eval()["experts"](x, WAYS[way]), x @ model["experts"].w1.mT
    assert (mean - exact).norm() < 0.1 * (exact - plain).norm()


@pytest.mark.parametrize("way", DENSE)
def test_where_dropout_cannot_act_it_is_an_error(way: str) -> None:
    model, x = own_mixture(lora_dropout=0.5), torch.randn(3, 4, 6)
    with pytest.raises(lora.LayerError, match="lora_dropout cannot act"):
        model["experts"](x, WAYS[way])
    model.eval()
    model["experts"](x, WAYS[way])


# --- what stays as it is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_what_it_was_once_the_updates_are_taken_out(family: str) -> None:
    model = mixture(family)
    before, keys, classes = snapshot(model), list(model.state_dict()), [type(m) for m in model.modules()]
    lora.inject(model, lora.LoRAConfig(r=2))
    assert any(isinstance(m, lora.layers.ExpertsLoRA) for m in model.modules())
    assert [key for key in model.state_dict() if "lora_" not in key] == keys
    fill(model)
    for _ in range(3):
        lora.merge(model)
        lora.unmerge(model)
    lora.eject(model)
    assert snapshot(model) == before
    assert [type(m) for m in model.modules()] == classes


@pytest.mark.parametrize("merged", [False, True])
def test_copies_are_models_of_their_own(merged: bool) -> None:
    _, model = adapted("Qwen3Moe")
    if merged:
        lora.merge(model)
    expected = logits(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(logits(other), expected)
        fill(other)
        assert not torch.equal(logits(other), expected)
    assert torch.equal(logits(model), expected)


def test_a_merged_weight_follows_its_factors_and_other_tensors() -> None:
    _, model = adapted("Qwen3Moe")
    lora.merge(model)
    before = logits(model)
    torch.manual_seed(5)
    fill(model)  # merged, and out of date
    after = logits(model)
    lora.unmerge(model)
    torch.testing.assert_close(logits(model), after)
    assert not torch.allclose(before, after)
    lora.merge(model)
    others = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name.endswith("lora_B")}
    got = functional_call(model, others, (), {"input_ids": torch.arange(3, 17).reshape(2, 7)}).logits
    lora.eject(model)
    torch.testing.assert_close(got, logits(model))


def test_what_moves_the_model_moves_the_original_too() -> None:
    _, model = adapted("Qwen3Moe")
    lora.merge(model)
    model.double()
    lora.unmerge(model)
    assert experts_of(model).gate_up_proj.dtype == torch.float64


# --- around it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(how: str, reentrant: bool) -> None:
    _, model = adapted("Qwen3Moe", how, lora_dropout=0.2)
    layer = experts_of(model).train()
    weights = torch.rand(ROUTED.shape)

    def gradients(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        torch.manual_seed(2)
        x = torch.linspace(-1, 1, 5 * 16).view(5, 16).requires_grad_()
        model.zero_grad()
        run(x).square().sum().backward()
        return [t.grad for t in (x, *layer.parameters()) if t.grad is not None]

    direct = gradients(lambda x: layer(x, ROUTED, weights))
    again = gradients(lambda x: checkpoint(lambda x: layer(x, ROUTED, weights), x, use_reentrant=reentrant))  # type: ignore[no-any-return]
    assert len(direct) == len(again) > 4
    for one, other in zip(direct, again, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
def test_generation_merged_and_not_is_the_same(how: str) -> None:
    _, model = adapted("Qwen3Moe", how)
    ids = torch.arange(3, 9).reshape(1, 6)
    found: Any = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    lora.merge(model)
    assert torch.equal(found, model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0))  # type: ignore[operator]


def test_the_auxiliary_loss_of_the_router_is_that_of_the_effective_model() -> None:
    plain, model = adapted("Qwen3Moe")
    ids = torch.arange(3, 17).reshape(2, 7)
    asked = {"input_ids": ids, "labels": ids, "output_router_logits": True}
    found, expected = model(**asked), with_weights(plain, lora.extract(model))(**asked)
    torch.testing.assert_close(found.aux_loss.double(), expected.aux_loss.double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss.double(), expected.loss.double(), atol=1e-5, rtol=1e-5)
    found.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(("how", "p"), [*((how, 0.0) for how in IMPLEMENTATIONS), ("batched_mm", 0.2), ("grouped_mm", 0.2)])
def test_autocast_rounds_and_changes_nothing_else(how: str, p: float) -> None:
    _, model = adapted("Qwen3Moe", how, lora_dropout=p)
    layer, weights = experts_of(model).train(), torch.rand(ROUTED.shape)
    found = []
    for enabled in (True, False):
        model.zero_grad()
        torch.manual_seed(1)
        x = torch.linspace(-1, 1, 5 * 16).view(5, 16).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x, ROUTED, weights)
            y.float().square().sum().backward()
        found.append([y, x.grad, *(q.grad for q in layer.parameters() if q.grad is not None)])
    assert len(found[0]) == len(found[1]) == 6
    for low, exact in zip(*found, strict=True):
        assert (low.float() - exact).norm() < 0.05 * exact.norm()
    assert all(q.grad.dtype == torch.float32 for q in layer.parameters() if q.grad is not None)


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
def test_a_model_without_memory_takes_an_adapter(how: str) -> None:
    plain, model = adapted("Qwen3Moe", how)
    with torch.device("meta"):
        empty = type(plain)(plain.config)  # type: ignore[call-arg, arg-type]
    assert lora.attach(empty, lora.extract(model)).experts == 4
    empty.load_state_dict(plain.state_dict(), strict=False, assign=True)
    for name, buffer in plain.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(empty.get_submodule(owner), leaf, buffer)
    torch.testing.assert_close(logits(empty.eval()), logits(model))


def test_disabled_is_the_plain_model() -> None:
    plain, model = adapted("Qwen3Moe")
    with lora.disabled(model):
        assert torch.equal(logits(model), logits(plain))
    assert not torch.equal(logits(model), logits(plain))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "how"), [(f, how) for f, how in CASES if f in ("Qwen3Moe", "GptOss") and how != "eager"])
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_compiled_in_one_graph(family: str, how: str, p: float) -> None:
    _, model = adapted(family, how, lora_dropout=p)
    layer, weights = experts_of(model).train(p > 0), torch.rand(ROUTED.shape)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 16)
    torch.manual_seed(1)
    y = compiled(x, ROUTED, weights)
    y.sum().backward()
    grads = [q.grad.clone() for q in layer.parameters() if q.grad is not None]
    assert len(grads) == 4
    if not p:
        model.zero_grad()
        expected = layer(x, ROUTED, weights)
        expected.sum().backward()
        torch.testing.assert_close(y, expected)
        for found, q in zip(grads, [q for q in layer.parameters() if q.grad is not None], strict=True):
            torch.testing.assert_close(found, q.grad)


# --- refused --------------------------------------------------------------------------------------------------------


def test_expert_parallelism_and_replaced_forwards_are_refused() -> None:
    model = mixture("Qwen3Moe")
    experts_of(model)._is_expert_parallel = True  # type: ignore[assignment]
    config = lora.LoRAConfig(target_modules=[], target_parameters=WHERE)
    expect_refusal(lora.TargetError, "expert parallelism", model, lambda: lora.inject(model, config))
    found = lora.inject(model, lora.LoRAConfig())  # "all-linear" leaves them out
    assert any("expert parallelism" in reason for reason in found.left_out.values())
    lora.eject(model)
    experts_of(model)._is_expert_parallel = False  # type: ignore[assignment]
    experts_of(model).forward = experts_of(model).forward  # type: ignore[method-assign]
    expect_refusal(lora.TargetError, "was replaced", model, lambda: lora.inject(model, config))


def test_kernels_that_would_not_see_the_updates_are_refused() -> None:
    _, model = adapted("Qwen3Moe")
    model.config._experts_implementation = "deepgemm"  # type: ignore[union-attr]
    with pytest.raises(lora.LayerError, match="experts implementation 'deepgemm'"):
        logits(model)
    lora.merge(model)
    model.config._experts_implementation = "eager"  # type: ignore[union-attr]
    logits(model)
