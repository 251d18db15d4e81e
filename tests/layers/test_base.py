"""What holds for every kind of layer: it computes with its effective weight, merging is exact, and it comes out as it was."""

import copy
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
import torch.fx
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import loralib as lora
from kinds import (
    COPIES,
    DTYPES,
    KINDS,
    Activated,
    Holder,
    Normalized,
    SamePadded,
    ScaledEmbedding,
    Standardized,
    agrees,
    every_kind,
    expected,
    fill,
    widened,
)
from loralib import ops
from models import bits, close, expect_refusal, same_bits, snapshot

INJECTED = [kind for kind in every_kind if not kind.endswith("of 0.1")]
LIKE_LINEAR = ["linear", "transformers' Conv1D", "merged linear", "merged Conv1D", "embedding", "conv1d", "bilinear"]
WITHOUT_INPUT = [
    kind for kind in every_kind if {"bag,", "scaled", "standardized", "normalized", "activated", "own"} & set(kind.split())
]
FLOAT_INPUTS = [kind for kind in every_kind if "embedding" not in kind and "bag" not in kind]


def factors(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if "lora_" in name]


def in_dtype(values: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in values)


def doubled(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.requires_grad_() if t.is_floating_point() else t for t in widened(values))


# --- forward is the base operation with the effective weight --------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", every_kind)
def test_forward_is_the_base_operation_with_the_effective_weight(kind, dtype):
    case = KINDS[kind]
    plain, model = (m.to(dtype) for m in case.build())
    x = in_dtype(case.inputs(), dtype)
    reference = expected(plain, model, x)
    assert not agrees(plain(*x), reference, dtype)  # so that a forward without the update would be noticed
    for training in (True, False):
        assert model.train(training)(*x).dtype == dtype
        assert agrees(model(*x), reference, dtype, case.terms)
        with torch.no_grad():
            assert agrees(model(*x), reference, dtype, case.terms)
    with lora.merged(model):
        assert agrees(model(*x), reference, dtype, case.terms)
    with lora.disabled(model):
        assert same_bits(model(*x), plain.eval()(*x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", every_kind)
def test_a_merged_layer_is_the_base_operation_on_the_merged_weight_to_the_bit(kind, training):
    plain, model = (m.train(training) for m in KINDS[kind].build())
    x = KINDS[kind].inputs()
    lora.merge(model)
    in_place = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.copy_(in_place[name])
    assert same_bits(model(*x), plain(*x))


@pytest.mark.parametrize("kind", INJECTED)
def test_mixed_dtypes_a_bfloat16_base_with_float32_factors(kind):
    case = KINDS[kind]
    model = Holder(case.make()).to(torch.bfloat16)
    plain = copy.deepcopy(model)
    lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["layer"]} | case.config))
    fill(model)
    assert {p.dtype for p in factors(model)} == {torch.float32}
    x = in_dtype(case.inputs(), torch.bfloat16)
    y = model(*x)
    assert y.dtype == torch.bfloat16
    assert agrees(y, expected(plain, model, x), torch.bfloat16, case.terms)
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in factors(model))
    lora.merge(model)
    assert agrees(model(*x), expected(plain, model, x), torch.bfloat16, case.terms)


@pytest.mark.parametrize("kind", FLOAT_INPUTS)
def test_inputs_need_not_be_contiguous(kind):
    model = KINDS[kind].build()[1]
    x = KINDS[kind].inputs()
    odd = tuple(torch.stack([t, t], dim=-1)[..., 0] for t in x)
    assert not any(t.is_contiguous() for t in odd)
    assert close(model(*odd), model(*x), factor=16)


@pytest.mark.parametrize("kind", FLOAT_INPUTS)
def test_autocast_computes_in_its_dtype_and_keeps_gradients_in_float32(kind):
    case = KINDS[kind]
    plain, model = case.build()
    x = case.inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, dtype = model(*x), plain(*x).dtype
    assert y.dtype == dtype
    assert agrees(y, expected(plain, model, x), torch.bfloat16, case.terms)
    y.float().square().sum().backward()
    assert {p.grad.dtype for p in factors(model)} == {torch.float32}


@pytest.mark.parametrize("kind", every_kind)
def test_threads_that_share_a_model_do_not_disturb_each_other(kind):
    model = KINDS[kind].build()[1].requires_grad_(False)
    x = KINDS[kind].inputs()
    y, before = model(*x), snapshot(model)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: model(*x), range(400)))
    assert snapshot(model) == before
    assert all(same_bits(result, y) for result in results)


# --- derivatives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", every_kind)
def test_first_and_second_derivatives_are_right(kind):
    model = KINDS[kind].build()[1].double()
    x = doubled(KINDS[kind].inputs())
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    tensors = [p.detach().clone().requires_grad_() for p in factors(model)]
    n = len(x)

    def run(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values[n:], strict=True)), values[:n])

    assert torch.autograd.gradcheck(run, (*x, *tensors))
    if "bag" not in kind:  # torch has no second derivative of embedding_bag
        assert torch.autograd.gradgradcheck(run, (*x, *tensors))


@pytest.mark.parametrize("kind", every_kind)
def test_gradients_are_those_of_the_dense_formula(kind):
    case = KINDS[kind]
    plain, model = (m.double() for m in case.build())
    x, z = doubled(case.inputs()), doubled(case.inputs())
    z = tuple(t.detach().clone().requires_grad_(t.is_floating_point()) for t in x)
    updates = lora.extract(model).layers
    leaves = {name: (u.A.clone().requires_grad_(), u.B.clone().requires_grad_()) for name, u in updates.items()}
    y, reference = model(*x), expected(plain, model, z, leaves)
    g = torch.randn_like(y)
    y.backward(g), reference.backward(g)
    for name, (A, B) in leaves.items():
        layer = model.get_submodule(name)
        assert torch.allclose(layer.lora_A.grad, A.grad, rtol=1e-9, atol=1e-9)
        assert torch.allclose(layer.lora_B.grad, B.grad, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(x, z, strict=True):
        assert mine.grad is None or torch.allclose(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def halved(y: Tensor) -> Tensor:
    y[..., ::2] *= 0.5
    return y


IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "+=": (lambda y: y.add_(1.5), lambda y: y + 1.5),
    "ReLU": (nn.ReLU(inplace=True), nn.ReLU()),
    "mul_": (lambda y: y.mul_(y.detach().sign()), lambda y: y * y.detach().sign()),
    "part": (halved, lambda y: halved(y.clone())),
}


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [kind for kind in every_kind if kind != "activated linear"])  # nor may that of a plain tanh
def test_an_output_may_be_modified_in_place(kind, dtype, forced):
    model = KINDS[kind].build()[1].to(dtype)
    x = in_dtype(KINDS[kind].inputs(), dtype)
    with ops.use("autograd") if forced else nullcontext():
        for modify, modified in IN_PLACE.values():
            wanted = torch.autograd.grad(modified(model(*x)).float().square().sum(), factors(model))
            found = torch.autograd.grad(modify(model(*x)).float().square().sum(), factors(model))
            assert all(close(a, b, factor=8) for a, b in zip(found, wanted, strict=True))
            with torch.no_grad():
                assert close(modify(model(*x)), modified(model(*x)), factor=8)


@pytest.mark.parametrize("kind", every_kind)
def test_the_base_gets_a_gradient_only_where_it_asks_for_one(kind):
    case = KINDS[kind]
    plain, model = (m.double() for m in case.build())
    x = widened(case.inputs())
    base = [name for name, _ in plain.named_parameters()]
    parameters = dict(model.named_parameters())
    for p in parameters.values():
        p.requires_grad_(True)
    exact = {name: p.detach().clone().requires_grad_() for name, p in plain.named_parameters()}
    y = model(*x)
    y.square().sum().backward()
    assert all(parameters[name].grad is not None for name in base)
    with torch.no_grad():  # W + ΔW as a leaf has the gradient that W must get
        lora.merge(model)
        exact = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if name in base}
        lora.unmerge(model)
    torch.func.functional_call(plain, exact, x).square().sum().backward()
    assert all(torch.allclose(parameters[name].grad, exact[name].grad, rtol=1e-8, atol=1e-8) for name in base)
    model.zero_grad()
    lora.mark_only_lora_as_trainable(model)
    model(*x).square().sum().backward()
    assert all(parameters[name].grad is None for name in base)
    assert all(p.grad is not None for p in factors(model))


# --- merging is exact -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", every_kind)
def test_merges_with_changing_factors_leave_every_bit_of_the_base(kind, dtype):
    plain, model = (m.to(dtype) for m in KINDS[kind].build())
    before = {name: (p, bits(p), p.requires_grad) for name, p in model.named_parameters() if "lora_" not in name}
    assert before.keys() == dict(plain.named_parameters()).keys()
    for _ in range(8):
        lora.merge(model)
        assert any(p is not before[name][0] for name, p in model.named_parameters() if name in before)
        fill(model)
        lora.unmerge(model)
    after = {name: (p, bits(p), p.requires_grad) for name, p in model.named_parameters() if name in before}
    assert all(after[name][0] is before[name][0] and after[name][1:] == before[name][1:] for name in before)
    assert [name for name, _ in model.named_parameters() if name in before] == list(before)


@pytest.mark.parametrize("kind", every_kind)
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_the_state_dict_does_not_tell_whether_the_layer_is_merged(kind):
    plain, model = KINDS[kind].build()
    before = {name: bits(t) for name, t in model.state_dict().items()}
    with lora.merged(model):
        after = {name: bits(t) for name, t in model.state_dict().items()}
    assert list(after.items()) == list(before.items())
    assert plain.state_dict().keys() == {name for name in before if "lora_" not in name}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", every_kind)
def test_loading_into_a_merged_layer_is_loading_into_an_unmerged_one(kind, assign):
    model = KINDS[kind].build()[1]
    x, other = KINDS[kind].inputs(), copy.deepcopy(model)
    state = {name: torch.randn_like(t) for name, t in model.state_dict().items()}
    lora.merge(other)
    for each in (model, other):
        each.load_state_dict({name: t.clone() for name, t in state.items()}, assign=assign)
    assert all(layer.merged for layer in other.modules() if isinstance(layer, lora.AdaptedLayer))
    assert close(model(*x), other(*x), factor=64 * KINDS[kind].terms)
    lora.unmerge(other)
    assert same_bits(model(*x), other(*x))
    assert all(same_bits(t, state[name]) for name, t in other.state_dict().items())


@pytest.mark.parametrize("kind", every_kind)
def test_loading_only_factors_into_a_merged_layer_acts(kind):
    model = KINDS[kind].build()[1]
    x, other = KINDS[kind].inputs(), fill(copy.deepcopy(model))
    lora.merge(model)
    model.load_state_dict(lora.lora_state_dict(other), strict=False)
    assert close(model(*x), other(*x), factor=16 * KINDS[kind].terms)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", every_kind)
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_a_copy_computes_the_same_and_is_its_own(kind, how, merged):
    plain, model = KINDS[kind].build()
    x = KINDS[kind].inputs()
    if merged:
        lora.merge(model)
    copied = COPIES[how](model)
    assert [type(m) for m in copied.modules()] == [type(m) for m in model.modules()]
    assert same_bits(copied(*x), model(*x))
    y = copied(*x)
    with torch.no_grad():
        for tensor in model.state_dict(keep_vars=True).values():
            tensor.zero_()
    assert same_bits(copied(*x), y)
    lora.eject(copied)
    assert [type(m) for m in copied.modules()] == [type(m) for m in plain.modules()]
    assert same_bits(copied(*x), plain(*x))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", every_kind)
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_a_change_of_dtype_reaches_what_was_set_aside(kind, dtype, merged):
    plain, model = KINDS[kind].build()
    x = in_dtype(KINDS[kind].inputs(), dtype)
    if merged:
        lora.merge(model)
    assert model.to(dtype) is model
    assert all(layer.merged is merged for layer in model.modules() if isinstance(layer, lora.AdaptedLayer))
    assert {t.dtype for t in model.state_dict().values()} == {model(*x).dtype} == {dtype}
    assert agrees(model(*x), expected(plain.to(dtype), model, x), dtype, KINDS[kind].terms)
    lora.eject(model)
    assert all(same_bits(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("kind", every_kind)
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_inference_mode_can_merge_what_is_trained_afterwards(kind):
    model = KINDS[kind].build()[1]
    x = KINDS[kind].inputs()
    with torch.inference_mode():
        lora.merge(model)
        model(*x)
    model.load_state_dict(model.state_dict())
    lora.unmerge(model)
    model(*x).sum().backward()
    assert all(p.grad is not None for p in factors(model))


def has_own_forward(layer: nn.Module) -> bool:
    return isinstance(layer, ScaledEmbedding | SamePadded | Standardized | Normalized | Activated)


@pytest.mark.parametrize("kind", INJECTED)
def test_a_weight_that_a_parametrization_computes_is_updated_and_never_merged(kind):
    model = Holder(KINDS[kind].make())
    own = next(name for name in ("weight", "in_proj_weight", "q_proj_weight") if name in dict(model.layer.named_parameters()))
    with torch.no_grad():
        model.layer.get_parameter(own).add_(0.1)  # no row of zeros, whose norm has no inverse
    plain = copy.deepcopy(model)
    parametrizations.weight_norm(model.layer, own)
    x, classes = KINDS[kind].inputs(), [type(m) for m in model.modules()]
    base, before = model(*x), snapshot(model)
    try:
        lora.inject(model, lora.LoRAConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["layer"]} | KINDS[kind].config))
    except lora.TargetError:  # which a layer with a forward of its own may be, but no other
        assert has_own_forward(model.layer)
        assert snapshot(model) == before
        return
    fill(model)
    y = model(*x)
    assert agrees(y, expected(plain, model, x), torch.float32, 4 * KINDS[kind].terms)
    y.sum().backward()
    with pytest.raises(lora.LayerError, match=r"not a Parameter \(a parametrization .* Nothing was changed"):
        lora.merge(model)
    assert same_bits(model(*x), y)
    lora.eject(model)
    assert [type(m) for m in model.modules()] == classes
    assert same_bits(model(*x), base)


BUILT = {
    "Linear": lambda: lora.Linear(5, 4, r=2),
    "MergedLinear": lambda: lora.MergedLinear(5, 6, r=2, enable_lora=[True, False]),
    "Embedding": lambda: lora.Embedding(5, 4, r=2, padding_idx=1),
    "Conv2d": lambda: lora.Conv2d(2, 4, 3, r=2),
    "Conv1d": lambda: lora.Conv1d(2, 4, 3, r=2),
}


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_a_merged_layer_that_is_initialized_again_computes_with_what_was_drawn(name):
    layer = fill(BUILT[name]()).eval()
    before = {key: bits(t) for key, t in layer.state_dict().items()}
    layer.reset_parameters()
    assert all(bits(t) != before[key] for key, t in layer.state_dict().items())
    fill(layer)
    layer.load_state_dict(layer.state_dict())
    layer.reset_parameters()
    assert layer.merged
    assert same_bits(layer.weight, layer.effective_weight(layer.pristine_weight))


# --- out of the model, and onto another -----------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", every_kind)
def test_eject_restores_everything(kind, merged):
    model = Holder(KINDS[kind].make()).eval()
    if isinstance(model.layer, lora.AdaptedLayer):
        lora.eject(model)
    model.layer.register_forward_hook(lambda *_: None)
    next(model.parameters()).requires_grad_(False)
    before, state, x = snapshot(model), list(model.state_dict()), KINDS[kind].inputs()
    y = model(*x)
    lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["layer"]} | KINDS[kind].config))
    fill(model)
    assert not close(model(*x), y)
    if merged:
        lora.merge(model)
    lora.eject(model)
    assert snapshot(model) == before
    assert list(model.state_dict()) == state
    assert same_bits(model(*x), y)


@pytest.mark.parametrize("kind", every_kind)
def test_a_layer_without_a_trace_of_lora_is_left_by_a_final_merge(kind):
    plain, model = KINDS[kind].build()
    x = KINDS[kind].inputs()
    y = model(*x)
    lora.merge(model, keep=False)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [list(vars(m)) for m in model.modules()] == [list(vars(m)) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert close(model(*x), y, factor=16 * KINDS[kind].terms)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", every_kind)
def test_an_extracted_adapter_makes_a_fresh_model_compute_the_same(kind, merged):
    plain, model = KINDS[kind].build()
    x = KINDS[kind].inputs()
    y = model(*x)
    if merged:
        lora.merge(model)
    adapter = lora.extract(model)
    fresh = copy.deepcopy(plain)
    assert lora.attach(fresh, adapter) == list(adapter.layers)
    assert same_bits(fresh(*x), y)
    again = lora.extract(fresh)
    assert [u.form() for u in again.layers.values()] == [u.form() for u in adapter.layers.values()]
    lora.merge(fresh)
    other = fill(copy.deepcopy(model))
    lora.attach(fresh, lora.extract(other))  # onto a merged one
    lora.unmerge(other), lora.unmerge(fresh)
    assert same_bits(fresh(*x), other(*x))


@pytest.mark.parametrize("kind", INJECTED)
def test_the_configuration_that_extract_derives_can_be_injected(kind):
    plain, model = KINDS[kind].build()
    adapter = lora.extract(model)
    assert set(lora.inject(plain, adapter.config)) == set(adapter.layers)
    forms = {name: u.form() for name, u in lora.extract(plain).layers.items()}
    assert forms == {name: u.form() for name, u in adapter.layers.items()}


@pytest.mark.parametrize("kind", [kind for kind in INJECTED if "attention" not in kind])  # whose last bits may change
def test_a_fresh_update_changes_no_bit_of_the_output(kind):
    for training in (True, False):
        model, x = Holder(KINDS[kind].make()).train(training), KINDS[kind].inputs()
        y = model(*x)
        lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["layer"]} | KINDS[kind].config))
        assert same_bits(model(*x), y)


@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast"])
@pytest.mark.parametrize("kind", [kind for kind in INJECTED if "attention" not in kind])
def test_in_low_precision_a_fresh_update_rounds_once_more_where_there_is_a_bias(kind, how):
    dtype = torch.float16 if how == "float16" else torch.bfloat16
    for bias in (True, False):
        model, x = Holder(KINDS[kind].make()), KINDS[kind].inputs()
        if not bias and getattr(model.layer, "bias", None) is not None:
            if "Conv1D" in kind:  # which cannot be without
                continue
            model.layer.bias = None
        model, x = (model, x) if how == "autocast" else (model.to(dtype), in_dtype(x, dtype))
        with torch.autocast("cpu", dtype=dtype, enabled=how == "autocast"):
            y = model(*x)
            lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["layer"]} | KINDS[kind].config))
            found = model(*x)
        b = getattr(model.layer, "bias", None)
        if b is None:
            assert same_bits(found, y)
        else:
            once = torch.finfo(dtype).eps * (y.detach().float().abs() + b.detach().float().abs().max())
            assert found.dtype == y.dtype
            assert ((found - y).float().abs() <= 1.5 * once).all()


@pytest.mark.parametrize("kind", every_kind)
def test_applying_a_function_to_all_modules_and_names_go_on_working(kind):
    plain, model = KINDS[kind].build()
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_parameters() if "lora_" not in name] == names
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    visited: list[nn.Module] = []
    assert model.apply(visited.append) is model
    assert len({id(m) for m in visited}) == len(visited)
    for mode in (False, True):
        assert model.train(mode) is model
        assert all(m.training is mode for m in model.modules())
    assert repr(model)


# --- dropout --------------------------------------------------------------------------------------------------------


def no_update(x: Tensor) -> Tensor:
    return 0 * x


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", every_kind)
def test_without_dropout_a_layer_gains_no_module_and_a_function_or_a_module_may_be_assigned(kind, how):
    plain, model = KINDS[kind].build()
    adapted = [m for m in model.modules() if isinstance(m, lora.AdaptedLayer)]
    assert not [child for layer in adapted for child in layer.children()]
    x = KINDS[kind].inputs()
    base, whole = plain(*x), model(*x)
    for dropout in (nn.Dropout(0.3), no_update, nn.Dropout(1.0), nn.Identity(), no_update):
        for layer in adapted:
            layer.lora_dropout = dropout
        copied = COPIES[how](model)
        if kind in WITHOUT_INPUT and not isinstance(dropout, nn.Identity):
            with pytest.raises(lora.LayerError, match=r"lora_dropout=.*cannot act in it"):
                copied(*x)
        elif not (isinstance(dropout, nn.Dropout) and dropout.p < 1):
            assert close(copied(*x), whole if isinstance(dropout, nn.Identity) else base, factor=64)
    with lora.merged(model):
        assert close(model(*x), whole, factor=64)


# --- what torch does with modules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", every_kind)
def test_it_compiles_without_a_graph_break(kind, merged):
    torch._dynamo.reset()
    model = KINDS[kind].build()[1]
    x = KINDS[kind].inputs()
    if merged:
        lora.merge(model)
    model.requires_grad_(not merged)
    y = torch.compile(model, fullgraph=True, backend="eager" if merged else "aot_eager")(*x)
    assert close(y, model(*x), factor=16)
    if not merged:
        y.sum().backward()
        assert all(p.grad is not None for p in factors(model))


@pytest.mark.parametrize("kind", every_kind)
def test_a_graph_has_no_factor_beside_a_product_for_compilers_to_forget(kind):
    torch._dynamo.reset()

    def backend(graph, example):
        seen.extend((str(node.target), name) for node in graph.graph.nodes for name in node.kwargs if name in ("alpha", "beta"))
        return graph

    seen = []
    model, x = KINDS[kind].build()[1], KINDS[kind].inputs()
    assert close(torch.compile(model, fullgraph=True, backend=backend)(*x), model(*x), factor=64)
    assert not seen


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("kind", every_kind)
def test_what_inductor_compiles_computes_the_same(kind):
    torch._dynamo.reset()
    model = KINDS[kind].build()[1]
    x = KINDS[kind].inputs()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)

    def step(model):
        y = model(*x)
        return [y, *torch.autograd.grad((y * torch.linspace(1, 2, y.numel()).view(y.shape)).sum(), factors(model))]

    for mine, theirs in zip(step(compiled), step(model), strict=True):
        assert close(mine, theirs, factor=64)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", every_kind)
def test_it_exports(kind, merged):
    model = KINDS[kind].build()[1].eval()
    x = KINDS[kind].inputs()
    if merged:
        lora.merge(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.export.export(model, x)
    assert close(program.module()(*x), model(*x), factor=16)


class Positional(nn.Module):
    """A model of one layer that torch.fx can trace: it has as many arguments as the layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer


class One(Positional):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Two(Positional):
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.layer(x, z)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in every_kind if "attention" not in kind])
def test_torch_fx_traces_a_model_that_holds_it(kind, merged):
    model, x = KINDS[kind].build()[1].eval(), KINDS[kind].inputs()
    if merged:
        lora.merge(model)
    elif kind in WITHOUT_INPUT and "bag" not in kind:
        return  # its update is made while the forward runs, of factors that torch.fx has no values of: merge first
    whole = {1: One, 2: Two}[len(x)](model.layer)
    graph = torch.fx.symbolic_trace(whole)
    assert close(graph(*x), whole(*x), factor=64)
    if not merged:
        graph(*x).sum().backward()
        assert all(p.grad is not None for p in factors(graph))


@pytest.mark.parametrize("kind", LIKE_LINEAR)
def test_torch_func_differentiates_and_vectorizes_it(kind):
    model = KINDS[kind].build()[1].double()
    x = widened(KINDS[kind].inputs())
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, x).square().sum()

    gradients = torch.func.grad(loss)(parameters)
    loss(dict(model.named_parameters())).backward()
    assert torch.allclose(gradients["layer.lora_A"], model.layer.lora_A.grad)
    many = torch.stack([model.layer.lora_B.detach() * i for i in range(3)])
    run = lambda B: torch.func.functional_call(model, parameters | {"layer.lora_B": B}, x)  # noqa: E731
    together = torch.func.vmap(run)(many)
    assert all(torch.allclose(y, run(B)) for y, B in zip(together, many, strict=True))


@pytest.mark.parametrize("kind", every_kind)
def test_hooks_run_once_per_call(kind):
    model = KINDS[kind].build()[1]
    calls: list[str] = []
    model.layer.register_forward_pre_hook(lambda module, args: calls.append("pre"))
    model.layer.register_forward_hook(lambda module, args, y: calls.append("post"))
    model(*KINDS[kind].inputs())
    assert calls == ["pre", "post"]


# --- weights that others use too ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INJECTED)
def test_a_weight_that_is_tied_to_another_layer_is_untouched_there_by_a_merge(kind):
    model = nn.ModuleDict({"layer": KINDS[kind].make(), "other": KINDS[kind].make()})
    for name, p in list(model["layer"].named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(model["other"].get_submodule(owner), leaf, p)
    x = KINDS[kind].inputs()
    run = lambda name: Holder(model[name])(*x)  # noqa: E731
    y = run("other")
    lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["layer"]} | KINDS[kind].config))
    fill(model)
    lora.merge(model)
    assert same_bits(run("other"), y)
    z = run("layer")
    with pytest.warns(UserWarning, match="the merged weight is untied"):
        lora.merge(model, keep=False)
    assert same_bits(run("other"), y)
    assert same_bits(run("layer"), z)


@pytest.mark.parametrize("kind", INJECTED)
def test_a_module_that_has_two_names_is_adapted_once(kind):
    layer = KINDS[kind].make()
    model = nn.ModuleDict({"layer": layer, "same": layer})
    before, x = snapshot(model), KINDS[kind].inputs()
    lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["layer"]} | KINDS[kind].config))
    fill(model)
    assert model["same"] is model["layer"]
    y = Holder(model["same"])(*x)
    with lora.merged(model):
        assert close(Holder(model["same"])(*x), y, factor=16 * KINDS[kind].terms)
    lora.eject(model)
    assert snapshot(model) == before


# --- what cannot work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INJECTED)
def test_a_rank_beyond_both_sides_of_a_weight_works_and_is_warned_of_once(kind):
    model = nn.ModuleDict({"a": Holder(KINDS[kind].make()), "b": Holder(KINDS[kind].make())})
    config = dict(KINDS[kind].config)
    if "slice_widths" in config:
        config["slice_widths"] = {".*layer": [4, 1, 2]}
    with pytest.warns(UserWarning, match="larger than both sides of the weight in") as caught:
        lora.inject(model, lora.LoRAConfig(**{"r": 100, "target_modules": ["layer"]} | config))
    assert len(caught) == 1
    fill(model)
    x = KINDS[kind].inputs()
    y = model["a"](*x)
    lora.merge(model)
    assert close(model["a"](*x), y, factor=64 * KINDS[kind].terms)


@pytest.mark.parametrize("kind", INJECTED)
def test_the_rank_that_reaches_the_larger_side_is_not_warned_of(kind):
    for r in (2, 4):
        lora.inject(Holder(KINDS[kind].make()), lora.LoRAConfig(**{"r": r, "target_modules": ["layer"]} | KINDS[kind].config))


@given(kind=st.sampled_from(every_kind), other=st.sampled_from(every_kind))
def test_an_adapter_of_another_layer_is_refused_by_name_and_both_sides(kind, other):
    plain, model = KINDS[kind].build()
    foreign = lora.extract(KINDS[other].build()[1])
    forms = [(name, u.form()) for name, u in lora.extract(model).layers.items()]
    if forms == [(name, u.form()) for name, u in foreign.layers.items()]:
        return
    for target in (plain, model):
        expect_refusal(
            lora.AttachError,
            r"layer.*(: |in the adapter).*Nothing was changed",
            target,
            lambda t=target: lora.attach(t, foreign),
        )


@pytest.mark.parametrize("kind", INJECTED)
def test_what_cannot_be_a_configuration_is_refused(kind):
    model = Holder(KINDS[kind].make())
    for wrong, message in (({"r": -1}, "r=-1"), ({"r": 1.5}, "r=1.5"), ({"r": 0}, "r=0"), ({"lora_alpha": 0}, "lora_alpha=0")):
        call = lambda w=wrong: lora.inject(  # noqa: E731
            model, lora.LoRAConfig(**{"target_modules": ["layer"]} | KINDS[kind].config | w)
        )
        expect_refusal(lora.ConfigError, message, model, call)
