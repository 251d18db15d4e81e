"""The faults of loralib 0.1 that its users reported, by their number in the project's list of complaints: ours has none of
them. Where it is cheap, the test shows that 0.1.2 has the fault."""

import copy
import io
import math
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import loralib as lora
from models import bits, close, mlp, randomize, same_bits, snapshot, trainable
from peers import loralib_0_1

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "Linear": ((6, 5), {}, (3, 6)),
    "MergedLinear": ((6, 9), {"enable_lora": [True, False, True]}, (3, 6)),
    "Embedding": ((7, 5), {}, (3, 4)),
    "Conv2d": ((4, 6, 3), {"padding": 1}, (2, 4, 5, 5)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, module: Any = lora, **options: Any) -> nn.Module:
    """A layer of either library whose factors are random, and the same for the same options."""
    sizes, own, _ = KINDS[kind]
    torch.manual_seed(0)
    layer = getattr(module, kind)(*sizes, **{"r": 2, "lora_alpha": 3} | own | options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in (layer.lora_A, layer.lora_B):
            factor.copy_(torch.randn(factor.shape, generator=generator))
    return layer


def input_of(kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    shape, generator = KINDS[kind][2], torch.Generator().manual_seed(2)
    if kind == "Embedding":
        return torch.randint(KINDS[kind][0][0], shape, generator=generator)
    return torch.randn(shape, generator=generator).to(dtype)


def weight(layer: nn.Module) -> nn.Parameter:
    return layer.weight if hasattr(layer, "weight") else layer.conv.weight


def clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors.items()}


# --- 1 to 5: modes and merging --------------------------------------------------------------------------------------


@every_kind
def test_01_eval_merges_however_it_is_said(kind):
    for say in (lambda m: m.eval(), lambda m: m.train(False), lambda m: m[0].eval()):
        model = nn.Sequential(build(kind))
        y = model(input_of(kind))
        say(model)
        assert model[0].merged
        assert close(model(input_of(kind)), y, factor=64)
        assert not model.train()[0].merged


@every_kind
def test_02_eval_and_train_return_the_layer(kind):
    theirs = build(kind, loralib_0_1())
    assert theirs.eval() is theirs.train() is None
    for options in ({}, {"merge_weights": False}, {"r": 0}):
        layer = getattr(lora, kind)(*KINDS[kind][0], **KINDS[kind][1] | options)
        assert layer.eval() is layer.train() is layer.train(False) is layer


@every_kind
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_03_what_was_saved_in_evaluation_mode_is_not_merged_twice(kind):
    wrong = []
    for module in (loralib_0_1(), lora):
        layer, fresh, x = build(kind, module), build(kind, module), input_of(kind)
        y = layer(x)
        layer.eval()
        fresh.load_state_dict(clones(layer.state_dict()))
        fresh.eval()
        wrong.append(not close(fresh(x), y, factor=64))
    assert wrong == [True, False]


@every_kind
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_03_a_state_dict_never_holds_a_merged_weight(kind):
    layer = build(kind)
    before = clones(layer.state_dict())
    states = [layer.eval().state_dict(), nn.ModuleDict({"a": layer}).state_dict(), copy.deepcopy(layer).state_dict()]
    for state in states:
        assert all(same_bits(state[name if name in state else f"a.{name}"], t) for name, t in before.items())


@every_kind
@pytest.mark.parametrize("whole", [False, True])
def test_04_a_checkpoint_loaded_into_a_merged_layer_acts_and_leaves_no_trace_in_the_weight(kind, whole):
    wrong = []
    for module in (loralib_0_1(), lora):
        layer, other, x = build(kind, module), build(kind, module), input_of(kind)
        with torch.no_grad():
            other.lora_A.normal_(), other.lora_B.normal_()
        y, W = other(x), weight(other).detach().clone()
        layer.eval()
        layer.load_state_dict({n: t for n, t in other.state_dict().items() if whole or "lora_" in n}, strict=False)
        acts = close(layer(x), y, factor=64)
        layer.train()
        wrong.append((not acts, not same_bits(weight(layer), W)))
    assert wrong == [(True, True), (False, False)]


@every_kind
def test_04_factors_edited_while_merged_leave_no_trace_in_the_weight(kind):
    wrong = []
    for module in (loralib_0_1(), lora):
        layer = build(kind, module)
        before = weight(layer).detach().clone()
        layer.eval()
        with torch.no_grad():
            layer.lora_A.normal_(), layer.lora_B.mul_(3)
        layer.train()
        wrong.append(not close(weight(layer), before, factor=64))
        if module is lora:
            assert same_bits(weight(layer), before)
    assert wrong == [True, False]


@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_05_no_number_of_merges_changes_a_bit_of_the_weight(kind, dtype):
    layer = build(kind).to(dtype)
    W, before = layer.weight, bits(layer.weight)
    for _ in range(50):
        layer.eval()
        with torch.no_grad():
            layer.lora_A.normal_(), layer.lora_B.normal_()
        layer.train()
    assert layer.weight is W
    assert bits(W) == before


@every_kind
def test_05_the_weight_of_0_1_drifts(kind):
    layer = build(kind, loralib_0_1()).to(torch.bfloat16)
    before = bits(weight(layer))
    for _ in range(50):
        layer.eval()
        layer.train()
    assert bits(weight(layer)) != before


@every_kind
def test_05_merging_rounds_once(kind):
    layer, exact = build(kind).to(torch.bfloat16), build(kind).to(torch.bfloat16).double()
    W = exact.effective_weight(exact.weight)
    assert close(layer.eval().weight, W, factor=0.51)


# --- 6 to 8: MergedLinear -------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    mask=st.lists(st.booleans(), min_size=1, max_size=5),
    width=st.integers(1, 4),
    d=st.integers(1, 6),
    r=st.integers(1, 3),
    fan_in_fan_out=st.booleans(),
    merged=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:.*larger than both sides")
def test_06_merged_linear_is_right_for_every_mask_and_layout(mask, width, d, r, fan_in_fan_out, merged):
    k = width * len(mask)
    layer = lora.MergedLinear(
        d, k, r=r, lora_alpha=3, enable_lora=mask, fan_in_fan_out=fan_in_fan_out, dtype=torch.float64
    ).train(not merged)
    W, rows, x = layer.pristine_weight.detach(), [], torch.randn(2, d).double()
    W = W.t().clone() if fan_in_fan_out else W.clone()
    if any(mask):
        for factor in (layer.lora_A, layer.lora_B):
            nn.init.normal_(factor)
        for i in range(len(mask)):
            if mask[i]:
                j = sum(mask[:i])
                rows = slice(i * width, (i + 1) * width)
                W[rows] += 3 / r * layer.lora_B[j * width : (j + 1) * width] @ layer.lora_A[j * r : (j + 1) * r]
    layer.train().train(not merged)
    assert close(layer(x), F.linear(x, W, layer.bias), factor=64)


class Recorder(TorchDispatchMode):
    """The largest number of elements in a tensor that was computed again, not viewed."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.known, self.largest = {t.untyped_storage().data_ptr() for t in known}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, t.numel())
        return result


def test_07_merged_linear_never_forms_the_update_of_the_weight_in_training():
    d, k, largest = 40, 60, []
    for module in (loralib_0_1(), lora):
        layer = module.MergedLinear(d, k, r=1, enable_lora=[True, False, True])
        x = torch.randn(2, d, requires_grad=True)
        with Recorder([*layer.parameters(), x]) as recorder:
            layer(x).sum().backward()
        largest.append(recorder.largest)
    assert largest[0] >= d * k
    assert largest[1] <= 2 * k


@pytest.mark.parametrize("options", [{}, {"enable_lora": [False, False, False]}], ids=["default", "all False"])
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_08_a_merged_linear_with_no_slice_enabled_is_a_plain_layer(options, fan_in_fan_out):
    options = {"r": 2, "fan_in_fan_out": fan_in_fan_out} | options
    x = torch.randn(2, 4)
    with pytest.raises(AttributeError, match="lora_A"):
        loralib_0_1().MergedLinear(4, 6, **options)(x)
    layer = lora.MergedLinear(4, 6, **options)
    W = layer.weight.t() if fan_in_fan_out else layer.weight
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(x), F.linear(x, W, layer.bias))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.weight.requires_grad


@every_kind
@pytest.mark.parametrize("merged", [False, True])
def test_08_nothing_stays_behind_when_a_layer_moves_to_another_device(kind, merged):
    assert isinstance(build("MergedLinear", loralib_0_1()).to("meta").lora_ind, Tensor)
    layer = build(kind).train(not merged).to("meta")
    held = [*layer.parameters(), *layer.buffers(), layer.pristine_weight]
    held += [t for t in tree_leaves(dict(vars(layer))) if isinstance(t, Tensor)]
    assert {t.device.type for t in held} == {"meta"}


# --- 9 to 11: convolutions ------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A plain convolution of any kind, and an input."""
    n, transposed, small = draw(st.integers(1, 3)), draw(st.booleans()), st.integers(1, 2)
    per_side = lambda of: tuple(draw(of) for _ in range(n))  # noqa: E731
    kernel, stride, dilation, g = per_side(st.integers(1, 3)), per_side(small), per_side(small), draw(small)
    own: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": g, "bias": draw(st.booleans())}
    same = not transposed and set(stride) == {1} and draw(st.booleans())
    own["padding"] = "same" if same else per_side(st.integers(0, 1))
    size = tuple(max(3, d * (k - 1) + 1) + draw(st.integers(0, 1)) for k, d in zip(kernel, dilation, strict=True))
    if transposed:
        own["output_padding"] = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    else:
        own["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    cls = getattr(nn, f"Conv{'Transpose' if transposed else ''}{n}d")
    d, k = g * draw(small), g * draw(small)
    layer = cls(d, k, kernel, **own, dtype=torch.float64)
    return layer, torch.randn(2, d, *size, dtype=torch.float64)


def true_rank_delta(layer: nn.Module, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """ΔW of a convolution, entry by entry: s·Σᵣ B[output, r]·A[r, input of the group]."""
    g, transposed = layer.groups, layer.transposed
    d, k = layer.in_channels // g, layer.out_channels // g
    rows = []
    for i in range(len(layer.weight)):
        columns = []
        for j in range(layer.weight.shape[1]):
            output, channel = ((i // d) * k + j, i % d) if transposed else (i, j)
            columns.append(sum(B[output, r].squeeze() * A[r, channel] for r in range(len(A))) * scaling)
        rows.append(torch.stack(columns))
    return torch.stack(rows)


@settings(max_examples=120)
@given(drawn=convolutions(), r=st.integers(1, 2))
@pytest.mark.filterwarnings("ignore:The rank is larger", "ignore:Using padding='same' with even kernel lengths")
def test_09_convolutions_of_every_kind_can_be_adapted(drawn, r):
    plain, x = drawn
    model, x = nn.Sequential(copy.deepcopy(plain)), x.requires_grad_()
    lora.inject(model, lora.LoRAConfig(r=r, lora_alpha=3, target_modules=["0"]))
    layer = randomize(model)[0]
    assert isinstance(layer, type(plain))
    factors = [t.detach().clone().requires_grad_() for t in (layer.lora_A, layer.lora_B)]
    W = plain.weight + true_rank_delta(plain, *factors, 3 / r)
    expected, y = functional_call(plain, {"weight": W}, (x,)), model(x)
    assert close(y, expected, factor=256)
    g = torch.randn_like(y)
    mine = torch.autograd.grad(y, [x, layer.lora_A, layer.lora_B], g)
    right = torch.autograd.grad(expected, [x, *factors], g)
    assert all(close(a, b, factor=1024) for a, b in zip(mine, right, strict=True))
    lora.merge(model)
    assert close(layer.weight, W, factor=16)
    assert close(model(x), expected, factor=256)
    lora.unmerge(model)
    lora.eject(model)
    assert type(model[0]) is type(plain)
    assert same_bits(model[0].weight, plain.weight)


@pytest.mark.parametrize(
    ("kind", "kernel", "shape", "fails"),
    [
        ("Conv1d", 3, (2, 4, 8), RuntimeError),
        ("Conv3d", 2, (1, 4, 3, 3, 3), RuntimeError),
        ("Conv1d", (3,), (2, 4, 8), AssertionError),
        ("Conv2d", (3, 1), (2, 4, 5, 5), AssertionError),
        ("Conv3d", (1, 2, 3), (1, 4, 3, 3, 3), AssertionError),
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_09_every_kernel_works_in_the_layers_of_0_1(kind, kernel, shape, fails, groups):
    x = torch.randn(shape)
    with pytest.raises(fails):
        getattr(loralib_0_1(), kind)(4, 8, kernel, r=2, groups=groups)(x)
    layer = getattr(lora, kind)(4, 8, kernel, r=2, lora_alpha=3, groups=groups, padding=1, padding_mode="circular")
    layer = randomize(layer)
    y = layer(x)
    W = layer.weight + true_rank_delta(layer, layer.lora_A, layer.lora_B, 1.5)
    plain = getattr(nn, kind)(4, 8, kernel, groups=groups, padding=1, padding_mode="circular")
    assert close(y, functional_call(plain, {"weight": W, "bias": layer.bias}, (x,)), factor=64)
    assert close(layer.eval()(x), y, factor=64)


def layouts() -> dict[str, dict[str, Tensor]]:
    """The state dict of one convolution as 0.1.1, 0.1.2 and the last version in git wrote it."""
    last = clones(build("Conv2d", loralib_0_1()).state_dict())
    first = {name.replace("conv.", ""): t for name, t in last.items()}
    both = last | {"weight": last["conv.weight"], "bias": last["conv.bias"]}
    return {"0.1.1": first, "0.1.2": last, "git": both}


@pytest.mark.parametrize("layout", ["0.1.1", "0.1.2", "git"])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("prefix", ["", "0.", "conv."])
def test_10_convolutions_load_the_keys_of_all_versions(layout, assign, merged, prefix):
    state = {prefix + name: t for name, t in layouts()[layout].items()}
    before = clones(state)
    layer = lora.Conv2d(4, 6, 3, r=2, lora_alpha=3, padding=1).train(not merged)
    model = layer if not prefix else nn.ModuleDict({prefix[:-1]: layer})
    result = model.load_state_dict(state, assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert state.keys() == before.keys()
    assert layer.merged is merged
    expected = build("Conv2d", loralib_0_1())(input_of("Conv2d"))
    assert close(layer(input_of("Conv2d")), expected, factor=64)
    assert layer.conv.weight is layer.weight
    assert sorted(layer.train().state_dict()) == ["bias", "lora_A", "lora_B", "weight"]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("how", ["weight", "conv.weight", "conv", "conv.load_state_dict"])
def test_10_a_pretrained_weight_can_be_put_into_a_convolution_in_every_way(how, merged):
    plain, layer, x = nn.Conv2d(4, 6, 3, padding=1), build("Conv2d").train(not merged), input_of("Conv2d")
    {
        "weight": lambda: (setattr(layer, "weight", plain.weight), setattr(layer, "bias", plain.bias)),
        "conv.weight": lambda: (setattr(layer.conv, "weight", plain.weight), setattr(layer.conv, "bias", plain.bias)),
        "conv": lambda: setattr(layer, "conv", plain),
        "conv.load_state_dict": lambda: layer.conv.load_state_dict(plain.state_dict()),
    }[how]()
    assert layer.merged is merged
    delta = 1.5 * (layer.lora_B @ layer.lora_A).view(plain.weight.shape)
    expected = functional_call(plain, {"weight": plain.weight + delta}, (x,))
    assert close(layer(x), expected, factor=64)
    assert same_bits(layer.train().weight, plain.weight)
    assert same_bits(layer.state_dict()["weight"], plain.weight)


def test_10_the_bare_convolution_can_be_asked_and_called():
    layer, x = build("Conv2d"), input_of("Conv2d")
    assert not hasattr(loralib_0_1().Conv2d(4, 6, 3), "weight")
    assert (layer.conv.kernel_size, layer.conv.out_channels, layer.conv.bias) == ((3, 3), 6, layer.bias)
    assert close(layer.conv(x), F.conv2d(x, layer.weight, layer.bias, padding=1), factor=4)
    assert sorted(layer.conv.state_dict()) == ["bias", "weight"]
    assert not hasattr(layer.conv, "no_such_thing")
    copied = pickle.loads(pickle.dumps(copy.deepcopy(layer.conv)))
    assert torch.equal(copied(x), layer.conv(x))


def test_11_an_injected_convolution_has_the_rank_it_was_asked_for():
    ranks = []
    theirs, model = build("Conv2d", loralib_0_1()), nn.Sequential(nn.Conv2d(4, 6, 3))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"]))
    for delta in ((theirs.lora_B @ theirs.lora_A).view(6, 4, 3, 3), randomize(model)[0].update.delta()):
        ranks.append(int(torch.linalg.matrix_rank(delta.detach().flatten(1))))
    assert ranks == [6, 2]


def test_11_dropout_acts_in_convolutions():
    x, changes = input_of("Conv2d"), []
    for module in (loralib_0_1(), lora):
        layer = build("Conv2d", module, lora_dropout=0.5)
        changes.append(not torch.equal(layer(x), layer(x)))
        layer.eval()
        assert torch.equal(layer(x), layer(x))
    assert changes == [False, True]
    layer, p = build("Conv2d", lora_dropout=0.5), 0.5
    torch.manual_seed(3)
    y = layer(x)
    torch.manual_seed(3)
    delta = 1.5 * (layer.lora_B @ layer.lora_A).view(layer.weight.shape)
    assert close(y, layer.conv(x) + F.conv2d(F.dropout(x, p), delta, padding=1), factor=64)


# --- 12: copying and exporting --------------------------------------------------------------------------------------


def saved(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": saved,
}


@every_kind
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("lora_dropout", [0.0, 0.3])
@pytest.mark.parametrize("how", COPIES)
def test_12_layers_can_be_copied_pickled_and_saved(kind, merged, lora_dropout, how):
    options = {} if kind == "Embedding" else {"lora_dropout": lora_dropout}
    layer, x = build(kind, **options).train(not merged), input_of(kind)
    copied = COPIES[how](layer)
    assert (type(copied), copied.merged) == (type(layer), merged)
    torch.manual_seed(5)
    y = layer(x)
    torch.manual_seed(5)
    assert same_bits(copied(x), y)
    with torch.no_grad():
        layer.pristine_weight.zero_()
    assert copied.train().weight.abs().max() > 0


@every_kind
def test_12_layers_of_0_1_without_dropout_cannot_be_pickled(kind):
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(build(kind, loralib_0_1()))


@every_kind
@pytest.mark.parametrize("merged", [False, True])
def test_12_layers_can_be_exported(kind, merged):
    layer, x = build(kind, merge_weights=False).eval(), input_of(kind)
    if merged:
        layer.merge()
    assert close(torch.export.export(layer, (x,)).module()(x), layer(x), factor=16)


@every_kind
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_12_layers_can_be_traced(kind, merged):
    layer, x = build(kind).train(not merged), input_of(kind)
    assert close(torch.jit.trace(layer, (x,))(x), layer(x), factor=16)


@every_kind
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_12_a_model_can_be_scripted_once_it_is_merged_for_good(kind):
    model, x = nn.Sequential(build(kind)), input_of(kind)
    y = model(x)
    if kind == "Linear":
        with pytest.raises(torch.jit.frontend.UnsupportedNodeError, match="function definitions aren't supported"):
            torch.jit.script(build(kind, loralib_0_1()))
    lora.merge(model, keep=False)
    assert close(torch.jit.script(model)(x), y, factor=64)


class OldPickle(pickle.Unpickler):
    """Reads what 0.1 pickled under the name that is ours now."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module.replace("loralib_0_1", "loralib"), name)


@pytest.mark.parametrize("kind", ["Linear", "MergedLinear", "Conv2d"])  # with dropout they could be pickled
@pytest.mark.parametrize("merged", [False, True])
def test_12_a_whole_model_that_0_1_pickled_computes_the_same(kind, merged):
    theirs, x = build(kind, loralib_0_1(), lora_dropout=0.3), input_of(kind)
    theirs.eval()
    y = theirs(x)
    theirs.train(not merged)
    ours = OldPickle(io.BytesIO(pickle.dumps(theirs))).load()
    for mode in (False, True, False):
        ours.train(mode)
    assert isinstance(ours, getattr(lora, kind))
    assert close(ours(x), y, factor=64)


# --- 13 to 16 and 19: whole models, names, starting values ----------------------------------------------------------


def test_13_injection_keeps_the_very_weights_of_a_model_and_what_it_computes():
    model, x = mlp(6, 5, 4), torch.randn(3, 6)
    weights, y = [p for p in model.parameters()], model(x)
    lora.inject(model, lora.LoRAConfig(r=2))
    now = [p for name, p in model.named_parameters() if "lora_" not in name]
    assert all(a is b for a, b in zip(now, weights, strict=True))
    assert same_bits(model(x), y)


def test_14_what_was_frozen_is_trained_when_it_is_lora():
    sets = []
    for module in (loralib_0_1(), lora):
        model = nn.Sequential(module.Linear(4, 4, r=2), nn.Linear(4, 2)).requires_grad_(False)
        module.mark_only_lora_as_trainable(model)
        sets.append(trainable(model))
    assert sets == [set(), {"0.lora_A", "0.lora_B"}]
    model(torch.randn(2, 4)).sum().backward()


def test_14_of_a_model_in_which_nothing_is_trained_one_is_warned():
    model = mlp(4, 4)
    with pytest.warns(UserWarning, match="nothing in it is trained"):
        lora.mark_only_lora_as_trainable(model)
    assert not trainable(model)


def test_14_modules_to_save_are_trained_and_saved():
    model = mlp(6, 5, 4)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"], modules_to_save=["2"]))
    model.requires_grad_(False)
    lora.mark_only_lora_as_trainable(model)
    assert trainable(model) == set(lora.lora_state_dict(model)) == {"0.lora_A", "0.lora_B", "2.weight", "2.bias"}


class WithBiasInNames(nn.Module):
    def __init__(self, module: Any):
        super().__init__()
        self.rel_bias_table = nn.Embedding(3, 4)
        self.attn = nn.Module()
        self.attn.register_buffer("bias", torch.ones(2, 2))
        self.lora = module.Linear(4, 4, r=2)
        self.plain = module.Linear(4, 4, r=0)


@pytest.mark.parametrize(
    ("bias", "right", "theirs_trains", "theirs_saves"),
    [
        ("all", {"lora.bias", "plain.bias"}, {"rel_bias_table.weight"}, {"rel_bias_table.weight", "attn.bias"}),
        ("lora_only", {"lora.bias"}, {"plain.bias"}, set()),
        ("none", set(), set(), set()),
    ],
)
def test_15_a_bias_is_a_parameter_named_bias_and_what_is_trained_is_saved(bias, right, theirs_trains, theirs_saves):
    right |= {"lora.lora_A", "lora.lora_B"}
    for module, trains, saves in ((loralib_0_1(), right | theirs_trains, right | theirs_saves), (lora, right, right)):
        model = WithBiasInNames(module)
        module.mark_only_lora_as_trainable(model, bias=bias)
        assert trainable(model) == trains
        assert set(module.lora_state_dict(model, bias=bias)) == saves


def test_16_an_embedding_starts_with_a_zero_a_and_a_normal_b_which_is_said_to_be_intended():
    for module in (loralib_0_1(), lora):
        torch.manual_seed(0)
        layer = module.Embedding(10, 400, r=8)
        assert not layer.lora_A.any()
        B = layer.lora_B.detach()
        assert abs(float(B.mean())) < 0.1
        assert abs(float(B.std()) - 1) < 0.1
    assert "intended" in lora.Embedding.__doc__


# --- 17: embeddings -------------------------------------------------------------------------------------------------


def test_17_max_norm_leaves_the_factors_alone():
    x, kept = input_of("Embedding"), []
    for module in (loralib_0_1(), lora):
        layer = build("Embedding", module, max_norm=0.5)
        A, B = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
        W = torch.renorm(layer.weight.detach(), 2.0, 0, 0.5)
        y = layer(x)
        kept.append(torch.equal(layer.lora_A, A) and torch.equal(layer.lora_B, B))
        expected = W[x] + 1.5 * (B @ A).t()[x]
        assert close(y, expected, factor=64) is kept[-1]
        layer.eval()
        assert not kept[-1] or close(layer(x), expected, factor=64)
    assert kept == [False, True]


def test_17_a_sparse_embedding_trains():
    layers = [build("Embedding", module, sparse=True) for module in (loralib_0_1(), lora)]
    with pytest.raises(RuntimeError, match="sparse"):
        layers[0](input_of("Embedding")).sum().backward()
    dense = build("Embedding")
    for layer in (layers[1], dense):
        layer(input_of("Embedding")).square().sum().backward()
    assert close(layers[1].lora_A.grad, dense.lora_A.grad, factor=16)
    assert close(layers[1].lora_B.grad, dense.lora_B.grad, factor=16)


@pytest.mark.parametrize("merged", [False, True])
def test_17_the_padding_row_stays_the_bases(merged):
    x = torch.tensor([[1, 2, 1]])
    layer = build("Embedding", padding_idx=1).train(not merged)
    y = layer(x)
    W = layer.pristine_weight
    assert same_bits(y[0, 0], W[1])
    assert close(y[0, 1], W[2] + 1.5 * (layer.lora_B @ layer.lora_A).t()[2], factor=64)
    if not merged:
        y.sum().backward()
        assert not layer.lora_A.grad[:, 1].any()


def test_17_scale_grad_by_freq_scales_the_gradient_of_a():
    x, gradients = torch.tensor([3, 3, 3, 2]), []
    for scaled in (False, True):
        layer = build("Embedding", scale_grad_by_freq=scaled)
        layer(x).sum().backward()
        gradients.append(layer.lora_A.grad)
    assert close(gradients[1][:, 3] * 3, gradients[0][:, 3], factor=16)
    assert torch.equal(gradients[1][:, 2], gradients[0][:, 2])


class Scaled(nn.Embedding):
    """As in some language models."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 12.0


@pytest.mark.parametrize("merged", [False, True])
def test_17_an_embedding_that_is_scaled_scales_its_update(merged):
    model, x = nn.Sequential(Scaled(7, 5)), input_of("Embedding")
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["0"]))
    layer = model[0]
    nn.init.normal_(layer.lora_A)
    W = (layer.weight + 1.5 * (layer.lora_B @ layer.lora_A).t()).detach()
    if merged:
        lora.merge(model)
    assert close(model(x), 12 * W[x], factor=64)


# --- 18: attention --------------------------------------------------------------------------------------------------


ATTENTIONS: dict[str, dict[str, Any]] = {
    "self": {},
    "other widths": {"kdim": 6, "vdim": 10},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
}
PARTS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def attention_inputs(options: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    widths = (8, options.get("kdim", 8), options.get("vdim", 8))
    lengths = (3, 5, 5)
    shapes = [(2, s, w) if options.get("batch_first") else (s, 2, w) for s, w in zip(lengths, widths, strict=True)]
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS)
@pytest.mark.parametrize("targets", [["q_proj"], ["v_proj", "out_proj"], PARTS], ids=len)
@pytest.mark.parametrize("state", ["train", "eval", "merged"])
def test_18_the_projections_of_an_attention_can_be_adapted(options, targets, state):
    model = nn.ModuleDict({"mha": nn.MultiheadAttention(8, 2, **options, dtype=torch.float64)})
    plain, inputs = copy.deepcopy(model["mha"]), attention_inputs(options, torch.float64)
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3, target_modules=targets))
    randomize(model).train(state == "train")
    tensors = {name: p.detach().clone() for name, p in plain.named_parameters()}
    for i, part in enumerate(PARTS):
        if part in targets:
            layer = model["mha"].get_submodule(part)
            delta = 1.5 * (layer.lora_B @ layer.lora_A).detach()
            if part == "out_proj":
                tensors["out_proj.weight"] += delta
            elif "in_proj_weight" in tensors:
                tensors["in_proj_weight"][8 * i : 8 * i + 8] += delta
            else:
                tensors[f"{part}_weight"] += delta
    if state == "merged":
        lora.merge(model)
    mask = torch.tensor([[False] * 5, [False, False, False, True, True]])
    for arguments in ({}, {"key_padding_mask": mask}, {"need_weights": False}):
        expected, expected_weights = functional_call(plain, tensors, inputs, arguments)
        for grad in (torch.enable_grad, torch.no_grad):  # without gradients torch may take its fast path
            with grad():
                y, weights = model["mha"](*inputs, **arguments)
            assert close(y, expected, factor=256)
            assert (weights is None) == (expected_weights is None)
            assert weights is None or close(weights, expected_weights, factor=256)


def test_18_a_layer_of_0_1_as_out_proj_had_no_effect_and_is_refused_here():
    for module in (loralib_0_1(), lora):
        mha = nn.MultiheadAttention(8, 2)
        x = torch.randn(3, 2, 8)
        mha.out_proj = module.Linear(8, 8, r=2)
        y = mha(x, x, x)[0]
        nn.init.normal_(mha.out_proj.lora_B)
        assert torch.equal(mha(x, x, x)[0], y)
    with pytest.raises(lora.LayerError, match="'out_proj' is a LoRA layer whose weight"):
        lora.mark_only_lora_as_trainable(mha)


def encoder(layers: int = 0) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers) if layers else layer


@pytest.mark.parametrize("targets", [["linear1"], ["linear2"], ["self_attn"], ["out_proj"], "all-linear"], ids=str)
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_18_the_fast_path_of_an_encoder_does_not_miss_an_update(targets, layers, padded):
    model, x = nn.ModuleDict({"encoder": encoder(layers)}), torch.randn(2, 5, 8)
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3, target_modules=targets))
    randomize(model)
    mask = torch.tensor([[False, False, False, True, True], [False] * 5]) if padded else None
    y = model["encoder"](x, src_key_padding_mask=mask)
    with lora.disabled(model):
        assert not close(model["encoder"](x, src_key_padding_mask=mask), y, factor=64)
    model.eval()
    kept = torch.ones(2, 5, dtype=torch.bool) if mask is None else ~mask
    with torch.no_grad():
        assert close(model["encoder"](x, src_key_padding_mask=mask)[kept], y[kept], factor=64)
        lora.merge(model)
        assert close(model["encoder"](x, src_key_padding_mask=mask)[kept], y[kept], factor=64)


def hand_built(module: Any, name: str, later: bool = False, **options: Any) -> nn.Module:
    layer = encoder()
    built = randomize(module.Linear(8, 8, r=2, merge_weights=later, **options))
    built.merge_weights = False
    setattr(layer, name, built)
    return layer


@pytest.mark.parametrize("name", ["linear1", "linear2"])
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_18_the_fast_path_does_not_miss_a_hand_built_layer_that_does_not_merge(name, later):
    x, wrong = torch.randn(2, 5, 8), []
    for module in (loralib_0_1(), lora):
        layer = hand_built(module, name, later)
        y = layer(x)
        layer.eval()
        with torch.no_grad():
            wrong.append(not close(layer(x), y, factor=64))
    assert wrong == [True, False]


@pytest.mark.parametrize("r", [0, 2])
@pytest.mark.parametrize("merge_weights", [False, True])
def test_18_the_fast_path_does_not_misread_a_transposed_weight(r, merge_weights):
    layer, x = encoder(), torch.randn(2, 5, 8)
    layer.linear1 = randomize(lora.Linear(8, 8, r=r, fan_in_fan_out=True, merge_weights=merge_weights))
    y = layer(x)
    layer.eval()
    with torch.no_grad():
        assert close(layer(x), y, factor=64)


# --- 19, 20, 22, 23 -------------------------------------------------------------------------------------------------


@every_kind
def test_19_a_negative_rank_is_refused(kind):
    sizes, own, _ = KINDS[kind]
    getattr(loralib_0_1(), kind)(*sizes, **own, r=-1)
    with pytest.raises(lora.ConfigError, match="r=-1"):
        getattr(lora, kind)(*sizes, **own, r=-1)


@every_kind
def test_19_the_scaling_is_alpha_over_r_unless_it_is_asked_for_otherwise(kind):
    assert build(kind, r=2, lora_alpha=3).scaling == build(kind, loralib_0_1(), r=2, lora_alpha=3).scaling == 1.5
    model = mlp(6, 5)
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3, use_rslora=True))
    assert model[0].scaling == 3 / math.sqrt(2)


@every_kind
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16])
def test_20_factors_may_be_wider_than_the_base(kind, merged, base):
    def mixed(module: Any) -> nn.Module:
        layer = build(kind, module).to(base)
        layer.lora_A.data, layer.lora_B.data = layer.lora_A.float(), layer.lora_B.float()
        return layer

    if kind == "Linear" and base is torch.bfloat16:
        with pytest.raises(RuntimeError, match="dtype"):
            mixed(loralib_0_1())(input_of(kind, base))
    layer, x = mixed(lora).train(not merged), input_of(kind, base)
    exact = build(kind).to(base).double()
    exact.lora_A.data, exact.lora_B.data = layer.lora_A.double(), layer.lora_B.double()
    y = layer(x)
    assert y.dtype == base
    assert close(y, exact(x if kind == "Embedding" else x.double()), factor=32)
    if not merged:
        y.float().sum().backward()
        assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32


class ShardedParameter(nn.Parameter):
    """A Parameter that is not all there, such as those of FSDP and of tensor parallelism."""


@every_kind
def test_22_modes_leave_a_weight_alone_that_is_not_to_be_merged(kind):
    layer = build(kind, merge_weights=False)
    layer.weight = W = ShardedParameter(layer.weight.detach(), requires_grad=False)
    version = W._version
    for mode in (False, True, False):
        assert not layer.train(mode).merged
    assert layer.weight is W
    assert W._version == version


@every_kind
def test_22_a_weight_that_is_not_all_there_is_refused_and_nothing_is_changed(kind):
    model = nn.Sequential(build("Linear"), build(kind))
    model[1].weight = ShardedParameter(model[1].weight.detach(), requires_grad=False)
    before = snapshot(model)
    for call in (model[1].eval, lambda: lora.merge(model)):
        with pytest.raises(lora.LayerError, match=r"ShardedParameter.*merge_weights=False.*Nothing was changed"):
            call()
        assert snapshot(model) == before


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@every_kind
@pytest.mark.parametrize("use_orig_params", [False, True])
@pytest.mark.filterwarnings("ignore:FSDP", "ignore:.*FSDP.*:FutureWarning")
def test_22_the_first_fsdp_computes_the_same(kind, use_orig_params, process_group):
    model, x = nn.Sequential(build(kind, merge_weights=False)).requires_grad_(True), input_of(kind)
    y = model(x)
    sharded = FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    assert close(sharded(x), y, factor=64)
    assert close(sharded.eval()(x), y, factor=64)


@pytest.mark.parametrize("kind", ["Linear", "MergedLinear"])
@pytest.mark.parametrize("r", [0, 2])
def test_23_the_product_reads_a_transposed_weight_as_it_lies_in_memory(kind, r):
    sizes, own, _ = KINDS[kind]
    layers = [getattr(module, kind)(*sizes, **own, r=r, fan_in_fan_out=True) for module in (loralib_0_1(), lora)]
    assert all(layer.weight.t().is_contiguous() for layer in layers)
    assert layers[1].weight.shape == layers[0].weight.shape == sizes
    assert layers[1].eval().weight.t().is_contiguous()


# --- not on the list ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [0, 2])
def test_an_embedding_made_of_a_given_weight_keeps_it(r):
    kept = []
    for module in (loralib_0_1(), lora):
        given_weight = torch.arange(12.0).view(3, 4)
        layer = module.Embedding.from_pretrained(given_weight) if r == 0 else module.Embedding(3, 4, r=r, _weight=given_weight)
        kept.append(torch.equal(layer.weight, torch.arange(12.0).view(3, 4)))
    assert kept == [False, True]


class OwnForward(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class InTheMiddle(TorchFunctionMode):
    """Calls `call` in another thread in the middle of every operation that is called `name`."""

    def __init__(self, name: str, call: Callable[[], object]):
        super().__init__()
        self.name, self.call = name, call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == self.name:
            thread = threading.Thread(target=self.call)
            thread.start()
            thread.join()
        return func(*args, **(kwargs or {}))


def check_threads(model: nn.Module, run: Callable[[], Tensor], operation: str) -> None:
    y, seen, before = run(), [], snapshot(model)
    with InTheMiddle(operation, lambda: seen.append(run())):
        seen.append(run())
    assert len(seen) > 1
    assert all(close(z, y, factor=64) for z in seen)
    assert snapshot(model) == before


OPERATION = {"Linear": "linear", "MergedLinear": "linear", "Embedding": "embedding", "Conv2d": "conv2d"}


@every_kind
@pytest.mark.parametrize("module", [loralib_0_1, lambda: lora], ids=["0.1.2", "ours"])
def test_threads_may_call_a_layer_at_once_as_in_0_1(kind, module):
    layer, x = build(kind, module()), input_of(kind)
    check_threads(layer, lambda: layer(x), OPERATION[kind])


@pytest.mark.parametrize(
    ("layer", "inputs", "operation"),
    [
        (Scaled(7, 5), [torch.tensor([1, 2, 3])], "embedding"),
        (OwnForward(4, 6, 3), [torch.randn(2, 4, 5)], "conv1d"),
        (nn.Conv2d(4, 6, 3), [torch.randn(2, 4, 5, 5)], "conv2d"),
        (nn.MultiheadAttention(8, 2), [torch.randn(3, 8)] * 3, "linear"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_threads_may_call_an_injected_layer_at_once(layer, inputs, operation):
    model = nn.Sequential(copy.deepcopy(layer))
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["0"]))
    for name, p in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p)

    def run() -> Tensor:
        y = model[0](*inputs)
        return y[0] if isinstance(y, tuple) else y

    check_threads(model, run, operation)
