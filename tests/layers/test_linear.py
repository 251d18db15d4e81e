"""`lora.Linear` against loralib 0.1.2, against its own effective weight, and through everything torch does with modules."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import loralib as lora
from models import bits, close, randomize, same_bits
from peers import loralib_0_1

SIZES = st.one_of(st.integers(1, 9), st.integers(10, 131))
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def layer_of(d: int = 6, k: int = 5, r: int = 2, **options) -> lora.Linear:
    torch.manual_seed(0)
    return randomize(lora.Linear(d, k, r=r, lora_alpha=3, **options))


def twins(seed: int, *args, **options) -> tuple[lora.Linear, nn.Module]:
    """Our layer and that of 0.1.2, made by the same call after the same seed."""
    made = []
    for cls in (lora.Linear, loralib_0_1().Linear):
        torch.manual_seed(seed)
        made.append(cls(*args, **options))
    return made[0], made[1]


def dense(layer: lora.Linear, x: Tensor) -> Tensor:
    """What the layer must compute, in float64 with one matrix."""
    W = layer.pristine_weight.double()
    W = W.t() if layer.fan_in_fan_out else W
    if layer.r:
        W = W + layer.scaling * (layer.lora_B.double() @ layer.lora_A.double())
    return F.linear(x.double(), W, None if layer.bias is None else layer.bias.double())


def reload(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": reload}


# --- against loralib 0.1.2 ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*larger than both sides")
@given(
    seed=st.integers(0, 2**16),
    d=SIZES,
    k=SIZES,
    r=st.integers(0, 5),
    lora_alpha=st.sampled_from([1, 2, 16, 0.5]),
    fan_in_fan_out=st.booleans(),
    merge_weights=st.booleans(),
    bias=st.booleans(),
    leading=st.lists(st.integers(1, 3), max_size=3),
    evaluation=st.booleans(),
)
def test_it_is_the_layer_of_0_1_in_tensors_outputs_and_gradients(
    seed, d, k, r, lora_alpha, fan_in_fan_out, merge_weights, bias, leading, evaluation
):
    options = dict(r=r, lora_alpha=lora_alpha, fan_in_fan_out=fan_in_fan_out, merge_weights=merge_weights, bias=bias)
    ours, theirs = twins(seed, d, k, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(same_bits(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    flags = [{name: p.requires_grad for name, p in layer.named_parameters()} for layer in (ours, theirs)]
    assert flags[0] == flags[1]
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine.copy_(torch.randn_like(mine)))
    for layer in (ours, theirs):
        layer.train(not evaluation)
    xs = [torch.randn(*leading, d).requires_grad_()]
    xs.append(xs[0].detach().clone().requires_grad_())
    ys = [layer(x) for layer, x in zip((ours, theirs), xs, strict=True)]
    assert close(ys[0], ys[1], factor=64)
    g = torch.randn_like(ys[0])
    for y in ys:
        if y.requires_grad:
            y.backward(g)
    assert close(xs[0].grad, xs[1].grad, factor=64)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        assert mine.grad is None or close(mine.grad, other.grad, factor=256)
    for name in ("r", "lora_alpha", "merge_weights", "fan_in_fan_out", *(("scaling", "merged") if r else ())):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_a_checkpoint_of_0_1_loads_and_computes_the_same(fan_in_fan_out):
    _, theirs = twins(0, 7, 5, r=2, lora_alpha=3, fan_in_fan_out=fan_in_fan_out)
    randomize(theirs)
    ours = lora.Linear(7, 5, r=2, lora_alpha=3, fan_in_fan_out=fan_in_fan_out)
    assert ours.load_state_dict(theirs.state_dict()).missing_keys == []
    x = torch.randn(3, 7)
    assert close(ours(x), theirs(x), factor=16)


def test_dropout_drops_the_inputs_of_the_update_as_0_1_does():
    p, n = 0.3, 40_000
    ours, theirs = twins(0, n, 1, r=1, lora_alpha=1, lora_dropout=p, bias=False)
    for layer in (ours, theirs):
        with torch.no_grad():
            layer.weight.zero_(), layer.lora_A.fill_(1), layer.lora_B.fill_(1)
    x = torch.ones(1, n, requires_grad=True)
    rates = []
    for layer in (ours, theirs):
        torch.manual_seed(1)
        (kept,) = torch.autograd.grad(layer(x).sum(), x)  # of each input: 0 when dropped, else its scale
        assert torch.equal(kept.unique(), torch.tensor([0.0, 1 / (1 - p)]))
        rates.append(float((kept == 0).double().mean()))
    sd = math.sqrt(p * (1 - p) / n)
    assert all(abs(rate - p) < 5 * sd for rate in rates)
    assert torch.equal(ours.eval()(x), torch.full((1, 1), float(n)))


def test_dropping_everything_leaves_the_base():
    layer = randomize(lora.Linear(4, 3, r=2, lora_dropout=0.5))
    layer.lora_dropout.p = 1.0
    x = torch.randn(2, 4)
    assert same_bits(layer(x), F.linear(x, layer.weight, layer.bias))


# --- forward is the base operation with the effective weight --------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*larger than both sides")
@given(d=SIZES, k=SIZES, r=st.integers(1, 9), fan_in_fan_out=st.booleans(), bias=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_forward_is_the_base_operation_with_the_effective_weight(d, k, r, fan_in_fan_out, bias, dtype):
    layer = layer_of(d, k, r, fan_in_fan_out=fan_in_fan_out, bias=bias, dtype=dtype)
    x = torch.randn(3, d).to(dtype)
    with torch.no_grad():
        W = layer.effective_weight(layer.weight)
    assert (W.dtype, W.shape) == (layer.weight.dtype, layer.weight.shape)
    unmerged, effective = layer(x), F.linear(x, W.t() if fan_in_fan_out else W, layer.bias)
    scale = 1 + dense(layer, x).abs().max() + layer.scaling * layer.lora_B.abs().max() * r * x.abs().max()
    tolerance = 8 * torch.finfo(dtype).eps * scale * max(1, math.sqrt(d))
    for y in (unmerged, effective):
        assert y.dtype == dtype
        assert (y.double() - dense(layer, x)).abs().max() < tolerance
    layer.merge()
    assert same_bits(layer(x), effective)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_first_and_second_derivatives_are_right(fan_in_fan_out):
    layer = layer_of(4, 3, 2, fan_in_fan_out=fan_in_fan_out, dtype=torch.float64)
    inputs = [torch.randn(2, 4, dtype=torch.float64, requires_grad=True), *layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *tensors):
        return torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_factors_may_have_another_dtype_than_the_base(base, factors):
    layer = layer_of(32, 16, 4)
    layer.to(base)
    layer.lora_A.data, layer.lora_B.data = layer.lora_A.to(factors), layer.lora_B.to(factors)
    x = torch.randn(5, 32).to(base).requires_grad_()
    y = layer(x)
    assert y.dtype == base
    assert close(y, dense(layer, x).to(base), factor=64 if factors is torch.float32 or base is torch.float32 else 16)
    y.sum().backward()
    assert layer.lora_A.grad.dtype == factors
    assert x.grad.dtype == base


def test_a_low_precision_input_is_never_copied_to_float32():
    layer = layer_of(64, 8, 2).to(torch.bfloat16)
    layer.lora_A.data, layer.lora_B.data = layer.lora_A.float(), layer.lora_B.float()
    x = torch.randn(33, 64, dtype=torch.bfloat16, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        layer(x)
    assert saved
    assert not [t for t in saved if t.dtype == torch.float32 and t.numel() == x.numel()]


def test_rank_zero_is_a_plain_linear_layer():
    layer = lora.Linear(4, 3)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.weight.requires_grad
    x = torch.randn(2, 4)
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(x), F.linear(x, layer.weight, layer.bias))


def test_the_input_may_be_passed_by_the_name_that_nn_linear_gives_it():
    for layer in (layer_of(), layer_of(fan_in_fan_out=True)):
        x = torch.randn(2, 6)
        assert torch.equal(layer(input=x), layer(x))


def test_a_scaling_that_was_assigned_acts_and_is_what_is_merged():
    layer, x = layer_of(), torch.randn(4, 6)
    layer.scaling = 0.25
    y = layer(x)
    assert close(y, dense(layer, x).float(), factor=8)
    assert close(layer.eval()(x), y, factor=8)
    assert layer.update.scaling == 0.25


def test_a_transposed_weight_is_a_view_of_the_matrix_that_the_product_reads():
    assert layer_of(fan_in_fan_out=True).weight.t().is_contiguous()


# --- modes and merging ----------------------------------------------------------------------------------------------


def test_eval_and_train_return_the_layer_and_merge_and_unmerge_it():
    layer = layer_of()
    assert layer.eval() is layer
    assert layer.merged
    assert layer.train() is layer
    assert not layer.merged
    assert layer.train(False) is layer
    assert layer.merged


def test_the_mode_of_a_parent_reaches_the_layer():
    model = nn.Sequential(nn.Sequential(layer_of()))
    for mode in (False, True, False):
        assert model.train(mode)[0][0].merged is not mode
    model.eval()
    assert model[0][0].merged


def test_merge_weights_false_never_merges_by_itself():
    assert not layer_of(merge_weights=False).eval().merged


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_a_hundred_merges_with_changing_factors_leave_every_bit_of_the_weight(dtype, fan_in_fan_out):
    layer = layer_of(fan_in_fan_out=fan_in_fan_out).to(dtype)
    W, before = layer.weight, bits(layer.weight)
    for _ in range(100):
        layer.eval()
        assert layer.weight is not W
        with torch.no_grad():
            layer.lora_A.normal_(), layer.lora_B.normal_()
        layer.train()
    assert layer.weight is W
    assert bits(W) == before


def test_merging_computes_in_float32_and_rounds_once():
    layer = layer_of(40, 30, 4).to(torch.bfloat16)
    exact = layer.weight.float() + layer.scaling * (layer.lora_B.float() @ layer.lora_A.float())
    assert same_bits(layer.eval().weight, exact.to(torch.bfloat16))


def test_a_merged_layer_computes_with_one_matrix_product():
    layer = layer_of().eval()
    x = torch.randn(2, 6)
    assert same_bits(layer(x), F.linear(x, layer.weight, layer.bias))


def test_merging_twice_is_merging_once():
    layer = layer_of()
    layer.merge()
    W = layer.weight
    layer.merge()
    assert layer.weight is W
    layer.unmerge()
    layer.unmerge()
    assert not layer.merged


def test_inference_mode_can_merge_what_is_trained_afterwards():
    layer, x = layer_of(), torch.randn(2, 6)
    with torch.inference_mode():
        layer.eval()(x)
    layer(x)
    layer.train()(x).sum().backward()
    assert layer.lora_A.grad is not None


def test_requires_grad_that_was_set_while_merged_stays():
    layer = layer_of().eval()
    layer.requires_grad_(True)
    assert layer.train().weight.requires_grad
    layer.eval().requires_grad_(False)
    assert not layer.train().weight.requires_grad


def test_requires_grad_of_a_tied_weight_that_was_set_elsewhere_while_merged_stays():
    layer, other = layer_of(), nn.Linear(6, 5)
    other.weight = layer.weight
    layer.eval()
    other.weight.requires_grad_(True)
    assert layer.train().weight.requires_grad


def test_a_refused_weight_leaves_a_merged_layer_as_it_was():
    layer = layer_of().eval()
    before = bits(layer.weight)
    with pytest.raises(TypeError):
        layer.weight = torch.zeros(5, 6)
    assert layer.merged
    assert bits(layer.weight) == before


# --- state dicts ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_the_state_dict_does_not_tell_whether_the_layer_is_merged():
    layer = layer_of()
    before = {key: bits(t) for key, t in layer.state_dict().items()}
    after = {key: bits(t) for key, t in layer.eval().state_dict().items()}
    assert list(before) == list(after) == ["weight", "bias", "lora_A", "lora_B"]
    assert before == after
    assert layer.state_dict(keep_vars=True)["weight"] is layer.pristine_weight


@pytest.mark.parametrize("assign", [False, True])
def test_loading_into_a_merged_layer_is_loading_into_an_unmerged_one(assign):
    state = randomize(lora.Linear(6, 5, r=2), seed=7).state_dict()
    layers = [layer_of(), layer_of().eval()]
    for layer in layers:
        nn.ModuleList([layer]).load_state_dict({f"0.{k}": v.clone() for k, v in state.items()}, assign=assign)
    assert layers[1].merged
    x = torch.randn(3, 6)
    assert close(layers[0](x), layers[1](x), factor=16)
    layers[1].train()
    assert all(same_bits(a, b) for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True))
    assert same_bits(layers[1].weight, state["weight"])


def test_loading_only_factors_into_a_merged_layer_acts():
    layer, x = layer_of().eval(), torch.randn(3, 6)
    other = randomize(lora.Linear(6, 5, r=2), seed=9)
    layer.load_state_dict({k: v for k, v in other.state_dict().items() if "lora_" in k}, strict=False)
    assert torch.equal(layer.lora_B, other.lora_B)
    assert close(layer(x), dense(layer, x).float(), factor=16)


# --- moving and copying ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_a_change_of_dtype_reaches_the_weight_that_was_set_aside(merged, dtype):
    layer, expected = layer_of().train(not merged), layer_of().weight.to(dtype)
    assert layer.to(dtype).merged is merged
    x = torch.randn(3, 6).to(dtype)
    assert {t.dtype for t in layer.state_dict().values()} == {layer(x).dtype} == {dtype}
    assert close(layer(x), dense(layer, x).to(dtype), factor=16)
    assert same_bits(layer.train().weight, expected)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_a_copy_computes_the_same_and_is_its_own(merged, how):
    layer, x = layer_of(lora_dropout=0.1, merge_weights=False).eval(), torch.randn(3, 6)
    if merged:
        layer.merge()
    copied = COPIES[how](layer)
    assert type(copied) is lora.Linear
    assert copied.merged is merged
    assert same_bits(copied(x), layer(x))
    with torch.no_grad():
        layer.pristine_weight.zero_()
    copied.unmerge()
    assert copied.weight.abs().max() > 0
    assert list(copied.state_dict()) == list(layer.state_dict())


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("how", COPIES)
def test_tied_weights_stay_tied_in_a_copy(merged, how):
    layer, tied = layer_of(), nn.Linear(6, 5)
    tied.weight = layer.weight
    model = nn.ModuleList([tied, layer]).train(not merged)
    copied = COPIES[how](model)
    assert copied[1].pristine_weight is copied[0].weight
    assert copied.half()[1].pristine_weight is copied[0].weight
    assert copied.train()[1].weight is copied[0].weight


# --- what torch does with modules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("merged", [False, True])
def test_it_compiles_without_a_graph_break(backend, merged):
    torch._dynamo.reset()
    layer = layer_of(lora_dropout=0.0).train(not merged)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x = torch.randn(3, 6, requires_grad=True)
    y = compiled(x)
    assert close(y, layer(x), factor=4)
    y.sum().backward()
    assert (layer.lora_A.grad is None) is merged


def test_a_compiled_layer_follows_the_mode():
    torch._dynamo.reset()
    layer, x = layer_of(), torch.randn(3, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    y = compiled(x)
    assert close(compiled.eval()(x), y, factor=16)
    with torch.no_grad():
        layer.train().lora_B.zero_()
    assert close(compiled(x), F.linear(x, layer.weight, layer.bias), factor=4)


@pytest.mark.parametrize("merged", [False, True])
def test_it_exports(merged):
    layer, x = layer_of(merge_weights=False).eval(), torch.randn(3, 6)
    if merged:
        layer.merge()
    program = torch.export.export(layer, (x,))
    assert close(program.module()(x), layer(x), factor=4)


def test_torch_func_differentiates_and_vectorizes_it():
    layer, x = layer_of(), torch.randn(3, 6)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    gradients = torch.func.grad(loss)(parameters, x)
    loss(parameters, x).backward()
    assert close(gradients["lora_A"], layer.lora_A.grad, factor=16)
    many = torch.stack([layer.lora_B * i for i in range(4)])
    run = lambda B: torch.func.functional_call(layer, parameters | {"lora_B": B}, (x,))  # noqa: E731
    together = torch.func.vmap(run)(many)
    assert all(close(y, run(B), factor=16) for y, B in zip(together, many, strict=True))


def test_autocast_computes_in_its_dtype_and_keeps_gradients_in_float32():
    layer, x = layer_of(32, 16, 4), torch.randn(5, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert close(y, layer(x), factor=16)
    y.float().sum().backward()
    assert layer.lora_A.grad.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    layer, x = layer_of(lora_dropout=0.5), torch.randn(3, 6, requires_grad=True)
    gradients = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        layer.zero_grad()
        torch.manual_seed(3)
        run(x).square().sum().backward()
        gradients.append(layer.lora_A.grad.clone())
    assert torch.equal(*gradients)


def test_hooks_run_once_per_call():
    layer, calls = layer_of(), []
    layer.register_forward_pre_hook(lambda *_: calls.append("pre"))
    layer.register_forward_hook(lambda *_: calls.append("post"))
    layer(torch.randn(2, 6))
    assert calls == ["pre", "post"]


def test_it_can_be_made_on_meta_and_loaded():
    with torch.device("meta"):
        layer = lora.Linear(6, 5, r=2, lora_alpha=3)
    layer.load_state_dict(layer_of().state_dict(), assign=True)
    x = torch.randn(2, 6)
    assert torch.equal(layer(x), layer_of()(x))


# --- what cannot work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": -1}, r"r=-1: the rank must be 0 \(no LoRA\) or a positive integer"),
        ({"r": 1.5}, "r=1.5"),
        ({"r": True}, "r=True"),
        ({"r": 2, "lora_alpha": -1}, "lora_alpha=-1: must be a positive number"),
        ({"r": 2, "lora_alpha": math.nan}, "lora_alpha=nan"),
        ({"r": 2, "lora_dropout": 1.0}, r"lora_dropout=1.0: must be a probability in \[0, 1\)"),
        ({"r": 2, "lora_dropout": -0.1}, "lora_dropout=-0.1"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(lora.ConfigError, match=message):
        lora.Linear(4, 4, **options)


def test_repr_says_what_the_layer_is():
    layer = layer_of()
    assert "r=2, lora_alpha=3" in repr(layer)
    assert "merged" not in repr(layer)
    assert "merged" in repr(layer.eval())
