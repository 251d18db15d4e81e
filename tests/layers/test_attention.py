"""Updates of the projections of `nn.MultiheadAttention`, by itself and in torch's transformer layers."""

import copy
import math
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

import loralib as lora
from attentions import attention_of
from kinds import PROJECTIONS, Holder, agrees, effective, fill, reload, widened
from models import close, expect_refusal, same_bits, snapshot, trainable

ALL = (*PROJECTIONS, "out_proj")
SUBSETS = [subset for n in range(1, 5) for subset in combinations(ALL, n)]
NESTED = "ignore:The PyTorch API of nested tensors is in prototype stage"
MISMATCH = "ignore:Support for mismatched"

pytestmark = pytest.mark.filterwarnings(NESTED)


def reference(plain: nn.Module, layer: nn.Module, *args: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """What torch computes in float64 with W + ΔW in the places of the weights."""
    updates = lora.extract(layer).layers
    root = nn.ModuleDict({"a": plain})
    tensors = effective(root, {f"a.{name}": update for name, update in updates.items()})
    exact = copy.deepcopy(plain).double().train()
    return functional_call(exact, {k.removeprefix("a."): t for k, t in tensors.items()}, widened(args), widened(kwargs))


# --- forward is the base operation with the effective weight --------------------------------------------------------


@st.composite
def masks(draw: st.DrawFn, n: int, heads: int, target: int, source: int, batched: bool) -> dict[str, Any]:
    """Masks that leave the first key visible to all. Both kinds have the same dtype, as torch wants it."""
    floating = draw(st.booleans())

    def mask(*shape: int) -> Tensor:
        hidden = torch.rand(shape) < 0.4
        hidden[..., 0] = False
        return torch.randn(shape).masked_fill(hidden, -math.inf) if floating else hidden

    given: dict[str, Any] = {}
    kind = draw(st.sampled_from([None, 2, 3]))
    if kind is not None:
        given["attn_mask"] = mask(target, source) if kind == 2 else mask(n * heads, target, source)
    if draw(st.booleans()):
        given["key_padding_mask"] = mask(n, source) if batched else mask(source)
    if given and floating:
        given = {key: m.where(torch.isinf(m), m.round(decimals=1)) for key, m in given.items()}
    return given


@given(
    data=st.data(),
    targets=st.sampled_from(SUBSETS),
    heads=st.integers(1, 4),
    width=st.integers(1, 5),
    r=st.integers(1, 3),
    batch_first=st.booleans(),
    batched=st.booleans(),
    bias=st.booleans(),
    add_bias_kv=st.booleans(),
    add_zero_attn=st.booleans(),
    widths=st.sampled_from([None, "same", (1, 3), (17, None), (None, 5)]),
    need_weights=st.booleans(),
    average_attn_weights=st.booleans(),
    self_attention=st.booleans(),
    training=st.booleans(),
    gradients=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16]),
)
@pytest.mark.filterwarnings("ignore:.*larger than both sides")
def test_it_attends_with_the_effective_weights(
    data, targets, heads, width, r, batch_first, batched, bias, add_bias_kv, add_zero_attn, widths,
    need_weights, average_attn_weights, self_attention, training, gradients, dtype,
):  # fmt: skip
    e, n = heads * width, 2 if batched else 1
    kdim, vdim = (e, e) if widths in (None, "same") else (w or e for w in widths)
    other = {} if widths is None else {"kdim": kdim, "vdim": vdim}
    options = dict(bias=bias, add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn, batch_first=batch_first)
    plain, layer = attention_of(targets, e, heads, dtype, r, **options | other)
    target, source = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    shape = lambda length, d: (length, d) if not batched else (n, length, d) if batch_first else (length, n, d)  # noqa: E731
    if self_attention and (kdim, vdim) == (e, e):
        source = target
        x = (torch.randn(shape(target, e)).to(dtype),) * 3
    else:
        x = tuple(torch.randn(shape(*sizes)).to(dtype) for sizes in ((target, e), (source, kdim), (source, vdim)))
    given = data.draw(masks(n, heads, target, source, batched))
    given = {key: m.to(dtype) if m.is_floating_point() else m for key, m in given.items()}
    asked = {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
    y_exact, weights_exact = reference(plain, layer, *x, **given, **asked)
    terms = 8 * e
    for merged in (False, True):
        with torch.set_grad_enabled(gradients):
            y, weights = layer.train(training)(*x, **given, **asked)
        assert y.dtype == dtype
        assert agrees(y, y_exact, dtype, terms)
        assert (weights is None) == (weights_exact is None)
        assert weights is None or agrees(weights, weights_exact, dtype, terms)
        if not merged:
            lora.merge(layer)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"kdim": 5}, {"bias": False}, {"batch_first": False}, {"add_bias_kv": True}])
def test_a_merged_attention_is_torchs_on_the_merged_weights_to_the_bit(options, training, need_weights):
    plain, layer = attention_of(**options)
    x = torch.randn(2, 3, 8)
    x = x, torch.randn(2, 3, options["kdim"]) if "kdim" in options else x, x
    lora.merge(layer)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.copy_(layer.get_parameter(name))
        for m in (plain, layer):
            m.train(training)
        y, z = layer(*x, need_weights=need_weights), plain(*x, need_weights=need_weights)
    assert same_bits(y[0], z[0])
    assert (y[1] is z[1] is None) or same_bits(y[1], z[1])


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fresh_update_changes_nothing_but_the_last_bits(dtype, need_weights):
    for e, heads in ((4, 2), (6, 3), (64, 8)):
        model = nn.ModuleDict({"a": nn.MultiheadAttention(e, heads, dtype=dtype)})
        x = torch.randn(3, 5, e, dtype=dtype)
        y = model["a"](x, x, x, need_weights=need_weights)
        lora.inject(model, lora.LoRAConfig(r=2))
        z = model["a"](x, x, x, need_weights=need_weights)
        assert close(z[0], y[0], factor=4)
        assert y[1] is z[1] is None or close(z[1], y[1], factor=4)


@pytest.mark.parametrize("need_weights", [True, False])
def test_the_attentions_own_dropout_acts_as_torchs(need_weights):
    plain, layer = attention_of(dropout=0.4, targets=("v_proj",))
    with torch.no_grad():
        layer.v_proj.lora_B.zero_()
    x = torch.randn(4, 6, 8)
    outputs = []
    for m in (plain, layer):
        torch.manual_seed(3)
        outputs.append(m(x, x, x, need_weights=need_weights))
    assert close(outputs[0][0], outputs[1][0], factor=16)
    assert not close(plain.eval()(x, x, x)[0], outputs[0][0], factor=16)
    if need_weights:
        assert close(outputs[0][1], outputs[1][1], factor=16)


def test_lora_dropout_acts_on_each_projection_in_training():
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, batch_first=True)})
    lora.inject(model, lora.LoRAConfig(r=2, lora_dropout=0.5))
    fill(model)
    x = torch.randn(1, 3, 8)
    assert len({float(model["a"](x, x, x)[0].sum().detach()) for _ in range(8)}) > 4
    model.eval()
    assert same_bits(model["a"](x, x, x)[0], model["a"](x, x, x)[0])
    assert [model["a"].get_submodule(name).lora_dropout.p for name in ALL] == [0.5] * 4


def test_a_causal_mask_and_its_hint():
    plain, layer = attention_of()
    x, mask = torch.randn(2, 4, 8), nn.Transformer.generate_square_subsequent_mask(4)
    exact = reference(plain, layer, x, x, x, attn_mask=mask)[0]
    for need_weights in (True, False):
        y = layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)[0]
        assert agrees(y, exact, torch.float32, 64)
    with pytest.raises(RuntimeError, match="attn_mask"):
        layer(x, x, x, is_causal=True)


@pytest.mark.filterwarnings(MISMATCH)
def test_masks_of_different_dtypes_work_together():
    plain, layer = attention_of()
    x, causal = torch.randn(2, 4, 8), torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
    padding = torch.zeros(2, 4).masked_fill(torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]]).bool(), -math.inf)
    given = {"attn_mask": causal, "key_padding_mask": padding}
    assert agrees(layer(x, x, x, **given)[0], reference(plain, layer, x, x, x, **given)[0], torch.float32, 64)


BAD_MASKS = {
    "padding of integers": {"key_padding_mask": torch.tensor([[0, 1, 0], [0, 0, 1]], dtype=torch.uint8)},
    "a mask of integers": {"attn_mask": torch.tensor([[0, 1, 1]] * 3)},
    "a mask for one key": {"attn_mask": torch.zeros(3, 1, dtype=torch.bool)},
    "a mask for one query": {"attn_mask": torch.tensor([[False, True, True]])},
    "a mask for one head": {"attn_mask": torch.zeros(2, 3, 3, dtype=torch.bool)},
    "padding of one row": {"key_padding_mask": torch.tensor([[False, True, True]])},
    "padding of one key": {"key_padding_mask": torch.tensor([[False], [False]])},
    "padding without a batch": {"key_padding_mask": torch.tensor([False, True, True])},
}


@pytest.mark.parametrize("bad", BAD_MASKS)
def test_masks_that_torch_refuses_are_refused(bad):
    plain, layer = attention_of()
    x = torch.randn(2, 3, 8)
    for attention in (plain, layer):
        with pytest.raises((RuntimeError, AssertionError, ValueError, TypeError, IndexError)):
            attention(x, x, x, **BAD_MASKS[bad])


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 7), (2, 3, 8), (2, 3, 8)),
        ((2, 3, 8), (1, 3, 8), (1, 3, 8)),
        ((2, 3, 8), (2, 3, 8), (2, 4, 8)),
        ((3, 8), (2, 3, 8), (2, 3, 8)),
    ],
)
def test_inputs_that_torch_refuses_are_refused(shapes):
    for attention in attention_of():
        with pytest.raises((RuntimeError, AssertionError, ValueError)):
            attention(*(torch.randn(shape) for shape in shapes))


def test_the_arguments_have_torchs_names_and_order():
    _, layer = attention_of()
    x, mask = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [False, True, True]])
    y = layer(x, x, x, mask, False)
    assert y[1] is None
    assert same_bits(y[0], layer(value=x, key=x, query=x, need_weights=False, key_padding_mask=mask)[0])


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 5}])
@pytest.mark.parametrize("need_weights", [True, False])
def test_autocast_computes_in_its_dtype(options, need_weights):
    plain, layer = attention_of(**options)
    x = torch.randn(2, 3, 8)
    x = x, torch.randn(2, 3, options.get("kdim", 8)), x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(*x, need_weights=need_weights)[0], plain(*x, need_weights=need_weights)[0]
    assert y.dtype == expected.dtype
    assert agrees(y, reference(plain, layer, *x)[0], torch.bfloat16, 64)
    y.float().sum().backward()
    assert layer.q_proj.lora_A.grad.dtype == torch.float32


# --- which projections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"kdim": 5, "vdim": 3}])
@pytest.mark.parametrize("targets", SUBSETS)
def test_any_of_the_projections_may_be_adapted(targets, options):
    plain, layer = attention_of(targets, **options)
    x = torch.randn(2, 3, 8), torch.randn(2, 4, options.get("kdim", 8)), torch.randn(2, 4, options.get("vdim", 8))
    y = layer(*x)[0]
    assert set(lora.extract(layer).layers) == set(targets)
    assert agrees(y, reference(plain, layer, *x)[0], torch.float32, 64)
    assert not close(y, plain(*x)[0], factor=64)
    y.square().sum().backward()
    for name in targets:
        assert layer.get_submodule(name).lora_B.grad.abs().max() > 0
    assert list(layer.state_dict())[: len(plain.state_dict())] == list(plain.state_dict())


@pytest.mark.parametrize("options", [{}, {"kdim": 5, "vdim": 3}])
@pytest.mark.parametrize("merged", [("q_proj",), ("k_proj", "out_proj"), ALL])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_change_of_dtype_with_some_projections_merged(merged, options, dtype):
    plain, layer = attention_of(**options)
    x = torch.randn(2, 3, 8), torch.randn(2, 4, options.get("kdim", 8)), torch.randn(2, 4, options.get("vdim", 8))
    for name in merged:
        layer.get_submodule(name).merge()
    layer.to(dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert {name for name in ALL if layer.get_submodule(name).merged} == set(merged)
    x = tuple(t.to(dtype) for t in x)
    assert agrees(layer(*x)[0], reference(plain.to(dtype), layer, *x)[0], dtype, 64)
    lora.eject(layer)
    assert all(same_bits(a, b) for a, b in zip(layer.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("options", [{}, {"kdim": 5, "vdim": 3}])
@pytest.mark.parametrize("merged", [("q_proj",), ("k_proj", "v_proj"), ALL])
@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_loading_with_some_projections_merged(merged, options, assign):
    _, layer = attention_of(**options)
    other = copy.deepcopy(layer)
    state = {name: torch.randn_like(t) for name, t in layer.state_dict().items()}
    for name in merged:
        layer.get_submodule(name).merge()
    for each in (layer, other):
        each.load_state_dict({name: t.clone() for name, t in state.items()}, assign=assign)
    x = torch.randn(2, 3, 8), torch.randn(2, 4, options.get("kdim", 8)), torch.randn(2, 4, options.get("vdim", 8))
    assert {name for name in ALL if layer.get_submodule(name).merged} == set(merged)
    assert close(layer(*x)[0], other(*x)[0], factor=256)
    assert all(same_bits(t, state[name]) for name, t in layer.state_dict().items())
    lora.unmerge(layer)
    assert same_bits(layer(*x)[0], other(*x)[0])


def test_a_weight_of_another_module_that_is_assigned_while_merged_is_the_new_base():
    _, layer = attention_of()
    x, other = torch.randn(2, 3, 8), nn.MultiheadAttention(8, 2)
    lora.merge(layer)
    layer.in_proj_weight = other.in_proj_weight
    assert layer.in_proj_weight is not other.in_proj_weight
    y = layer(x, x, x)[0]
    lora.unmerge(layer)
    assert layer.in_proj_weight is other.in_proj_weight
    assert close(layer(x, x, x)[0], y, factor=64)


def test_a_weight_that_is_computed_from_a_merged_one_is_final():
    _, layer = attention_of()
    x = torch.randn(2, 3, 8)
    lora.merge(layer)
    with pytest.warns(UserWarning, match="it is final"):
        layer.in_proj_weight = nn.Parameter(layer.in_proj_weight.detach() * 2)
    y = layer(x, x, x)[0]
    assert not any(projection.has_update for projection in layer.adapted())
    layer.train()
    assert close(layer(x, x, x)[0], y, factor=64)


def test_merging_one_of_two_attentions_that_share_their_weight_leaves_the_other_alone():
    a, b = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)
    b.in_proj_weight = a.in_proj_weight
    model = nn.ModuleDict({"a": a, "b": b})
    x, before = torch.randn(3, 2, 8), snapshot(model)
    y = b(x, x, x)[0]
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["a"]))
    fill(model)
    lora.merge(model)
    assert same_bits(b(x, x, x)[0], y)
    copied = copy.deepcopy(model)
    lora.unmerge(copied)
    assert copied["a"].in_proj_weight is copied["b"].in_proj_weight
    lora.eject(model)
    assert snapshot(model) == before


def test_disabled_blocks_with_merged_projections():
    plain, layer = attention_of()
    model, x = nn.ModuleDict({"a": layer}), torch.randn(2, 3, 8)
    layer.q_proj.merge()
    before, y = snapshot(model), layer(x, x, x)[0]
    with lora.disabled(model):
        assert same_bits(layer(x, x, x)[0], plain(x, x, x)[0])
        with pytest.raises(lora.LayerError, match="disabled"):
            lora.merge(model)
    assert same_bits(layer(x, x, x)[0], y)
    assert [entry[:3] for entry in snapshot(model)] == [entry[:3] for entry in before]
    with lora.merged(model):
        assert close(layer(x, x, x)[0], y, factor=64)
    assert layer.q_proj.merged
    assert not layer.k_proj.merged


# --- names, targets, and what is trained ----------------------------------------------------------------------------


class Block(nn.Module):
    """Attention inside a module of your own, under names that are not torch's."""

    def __init__(self):
        super().__init__()
        self.mixer = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True), "up": nn.Linear(8, 8)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer["attn"](x, x, x, need_weights=False)[0]
        return x + self.mixer["up"](x).relu()


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"target_modules": ["attn"]}, {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ({"target_modules": ["q_proj", "v_proj"]}, {"q_proj", "v_proj"}),
        ({"target_modules": ["attn.q_proj"]}, {"q_proj"}),
        ({"target_modules": r".*\.attn\..*"}, {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ({"target_modules": ["attn"], "exclude_modules": ["out_proj"]}, {"q_proj", "k_proj", "v_proj"}),
        ({"exclude_modules": ["up"]}, {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ({"exclude_modules": ["attn"], "target_modules": ["attn", "up"]}, set()),
    ],
)
def test_projections_are_targets_by_name(config, names):
    model = nn.Sequential(Block(), Block())
    before, x = snapshot(model), torch.randn(2, 3, 8)
    expected = {f"{i}.mixer.attn.{name}" for i in range(2) for name in names} or {"0.mixer.up", "1.mixer.up"}
    assert set(lora.inject(model, lora.LoRAConfig(r=2, **config))) == expected
    fill(model)
    assert set(lora.extract(model).layers) == expected
    y = model(x)
    with lora.merged(model):
        assert close(model(x), y, factor=64)
    lora.mark_only_lora_as_trainable(model)
    assert trainable(model) == {f"{name}.lora_{letter}" for name in expected for letter in "AB"}
    lora.mark_only_lora_as_trainable(model, bias="all")
    lora.eject(model)
    model.requires_grad_(True)
    assert snapshot(model) == before


def test_projections_may_be_injected_one_after_the_other():
    model = nn.Sequential(Block())
    before, x = snapshot(model), torch.randn(2, 3, 8)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["v_proj"]))
    lora.inject(model, lora.LoRAConfig(r=1, target_modules=["out_proj", "q_proj"]))
    call = lambda: lora.inject(model, lora.LoRAConfig(r=1, target_modules=["attn"]))  # noqa: E731
    expect_refusal(lora.TargetError, "is a LoRA layer already; eject it first", model, call)
    fill(model)
    y = model(x)
    fresh = nn.Sequential(Block())
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if "lora_" not in k})
    lora.attach(fresh, lora.extract(model))
    assert same_bits(fresh(x), y)
    lora.eject(model)
    assert snapshot(model) == before


def test_a_misspelt_projection_is_named():
    model = nn.Sequential(Block())
    call = lambda: lora.inject(model, lora.LoRAConfig(target_modules=["q_porj"]))  # noqa: E731
    expect_refusal(lora.TargetError, "'q_porj'.*q_proj", model, call)


def test_ranks_and_alphas_may_differ_by_projection():
    model = nn.Sequential(Block())
    config = lora.LoRAConfig(r=2, lora_alpha=4, rank_pattern={"v_proj": 5}, alpha_pattern={"out_proj": 1}, use_rslora=True)
    lora.inject(model, config)
    updates = {name.rpartition(".")[2]: (u.r, u.lora_alpha) for name, u in lora.extract(model).layers.items()}
    assert updates == {"q_proj": (2, 4), "k_proj": (2, 4), "v_proj": (5, 4), "out_proj": (2, 1), "up": (2, 4)}


def test_an_attention_that_is_the_whole_model_can_be_adapted():
    layer = nn.MultiheadAttention(8, 2)
    before, x = snapshot(layer), torch.randn(3, 2, 8)
    assert set(lora.inject(layer, lora.LoRAConfig(r=2))) == set(ALL)
    fill(layer)
    y = layer(x, x, x)[0]
    other = reload(layer)
    assert same_bits(other(x, x, x)[0], y)
    lora.eject(other)
    assert type(other) is nn.MultiheadAttention
    lora.eject(layer)
    assert snapshot(layer) == before


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("options", [{}, {"kdim": 5}, {"bias": False}, {"add_bias_kv": True}])
def test_eject_restores_everything(options, merged):
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, **options)}).eval()
    layer = model["a"]
    layer.out_proj.weight.requires_grad_(False)
    layer.note = {"a": 1}
    layer.register_forward_hook(lambda *_: None)
    layer.register_forward_pre_hook(lambda *_: None)
    layer.out_proj.register_forward_hook(lambda *_: None)
    before, order = snapshot(model), list(vars(layer))
    lora.inject(model, lora.LoRAConfig(r=2))
    if merged:
        lora.merge(model)
    model.train().eval()
    lora.eject(model)
    assert snapshot(model) == before
    assert list(vars(layer)) == order


def test_hooks_see_the_call_and_may_change_it():
    _, layer = attention_of()
    x, seen = torch.randn(2, 3, 8), []
    y = layer(x, x, x)[0]
    layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append((len(args), sorted(kwargs))), with_kwargs=True)
    layer.register_forward_hook(lambda m, args, output: (output[0] + 1, output[1]))
    layer.out_proj.register_forward_hook(lambda m, args, output: seen.append("out_proj"))
    layer.q_proj.register_forward_hook(lambda m, args, output: seen.append("q_proj"))
    assert close(layer(x, x, x, need_weights=False)[0], y + 1, factor=64)
    assert seen == [(3, ["need_weights"]), "q_proj", "out_proj"]


def test_initializing_again_draws_the_base_and_goes_on():
    _, layer = attention_of()
    W = layer.in_proj_weight
    layer._reset_parameters()
    x = torch.randn(2, 3, 8)
    y = layer(x, x, x)[0]
    with lora.merged(layer):
        assert close(layer(x, x, x)[0], y, factor=64)
    assert layer.in_proj_weight is W


# --- adapters that do not fit ---------------------------------------------------------------------------------------


def test_adapters_of_other_attentions_do_not_fit():
    for options, message in (
        ({"e": 12}, r"a.q_proj: lora_A \(2, 12\) in the adapter, \(2, 8\) in the model"),
        ({"kdim": 5}, r"a.k_proj: lora_A \(2, 5\) in the adapter, \(2, 8\) in the model"),
    ):
        source = nn.ModuleDict({"a": attention_of(**options)[1]})
        adapter = lora.extract(source)
        for layer in attention_of():
            model = nn.ModuleDict({"a": layer})
            expect_refusal(lora.AttachError, message, model, lambda m=model, a=adapter: lora.attach(m, a))


def test_the_update_of_a_linear_layer_under_the_same_name_is_no_projections():
    update = lora.LoRAUpdate(torch.randn(2, 8), torch.randn(8, 2), 3)
    adapter = lora.Adapter(lora.LoRAConfig(r=2), {"a.v_proj": update})
    for layer in attention_of():
        model = nn.ModuleDict({"a": layer})
        message = (
            "a.v_proj: (kind linear in the adapter, projection in the model|expected a ProjectionUpdate .*, got a LoRAUpdate)"
        )
        expect_refusal(lora.AttachError, message, model, lambda m=model: lora.attach(m, adapter))


@pytest.mark.parametrize("rows", [24, 8])
def test_the_update_of_an_attention_as_a_whole_does_not_fit(rows):
    adapter = lora.Adapter(lora.LoRAConfig(r=2), {"a": lora.LoRAUpdate(torch.randn(2, 8), torch.randn(rows, 2), 3)})
    model = nn.ModuleDict({"a": attention_of()[0]})
    expect_refusal(lora.AttachError, "a[.:]", model, lambda: lora.attach(model, adapter))


class OwnAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.out_proj.weight.t()


@pytest.mark.parametrize("target", [["a"], ["out_proj"], "all-linear"])
def test_an_attention_with_a_forward_of_its_own_is_refused(target):
    model = nn.ModuleDict({"a": OwnAttention(8, 2)})
    call = lambda: lora.inject(model, lora.LoRAConfig(r=2, target_modules=target))  # noqa: E731
    expect_refusal(lora.TargetError, "OwnAttention|no linear layer", model, call)


def test_an_attention_whose_forward_is_wrapped_is_refused():
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)})
    model["a"].forward = model["a"].forward
    call = lambda: lora.inject(model, lora.LoRAConfig(r=2, target_modules=["a"]))  # noqa: E731
    expect_refusal(lora.TargetError, "forward of its own", model, call)


# --- nested tensors -------------------------------------------------------------------------------------------------


def nested(*lengths: int) -> Tensor:
    return torch.nested.nested_tensor([torch.randn(n, 8) for n in lengths])


@torch.no_grad()
def test_a_nested_tensor_is_attended_to_row_by_row():
    plain, layer = (m.eval() for m in attention_of())
    x = nested(3, 1, 4)
    y = layer(x, x, x, need_weights=False)[0]
    assert y.is_nested
    for row, result in zip(x.unbind(), y.unbind(), strict=True):
        assert agrees(result, reference(plain, layer, row, row, row)[0], torch.float32, 64)


@pytest.mark.parametrize("case", ["other keys", "other values", "weights", "a mask", "a padding mask"])
@torch.no_grad()
def test_what_is_not_done_with_nested_tensors_is_refused(case):
    """Rather than done as if it had not been asked. The weights are what torch would give."""
    x = nested(3, 2)
    args = {"other keys": (x, nested(3, 2), x), "other values": (x, x, nested(3, 2))}.get(case, (x, x, x))
    kwargs: dict[str, Any] = {"need_weights": case == "weights"}
    if case == "a mask":
        kwargs["attn_mask"] = torch.ones(3, 3, dtype=torch.bool).triu(1)
    if case == "a padding mask":
        kwargs["key_padding_mask"] = torch.tensor([[False, False, True], [False, True, True]])
    plain, layer = (m.eval() for m in attention_of())
    if case != "weights":
        with pytest.raises((RuntimeError, AssertionError)):
            plain(*args, **kwargs)
    with pytest.raises(lora.LayerError, match="nested"):
        layer(*args, **kwargs)


# --- torch's transformer layers -------------------------------------------------------------------------------------


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 12, **{"batch_first": True, "dropout": 0.0} | options)
    return widely(nn.TransformerEncoder(layer, 2))


def widely(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


PADDING = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)
CAUSAL = torch.ones(4, 4, dtype=torch.bool).triu(1)
TARGETS = {
    "all-linear": "all-linear",
    "self_attn": ["self_attn"],
    "q_proj": ["q_proj"],
    "out_proj": ["out_proj"],
    "linear1": ["linear1"],
    "of one layer": ["layers.1.self_attn.v_proj", "layers.1.linear2"],
}


@pytest.mark.parametrize("given", ["nothing", "padding", "mask", "both"])
@pytest.mark.parametrize("mode", ["training", "evaluation", "evaluation without gradients", "evaluation of a frozen base"])
@pytest.mark.parametrize("targets", TARGETS)
def test_an_encoder_computes_with_its_updates_in_every_mode(targets, mode, given):
    model = encoder().train(mode == "training").requires_grad_("frozen" not in mode)
    masks = {"src_key_padding_mask": PADDING} if given in ("padding", "both") else {}
    masks |= {"mask": CAUSAL} if given in ("mask", "both") else {}
    x = torch.randn(3, 4, 8)
    kept = ~PADDING if "src_key_padding_mask" in masks else torch.ones(3, 4, dtype=torch.bool)
    with torch.set_grad_enabled("without" not in mode):
        y, before = model(x, **masks), snapshot(model)
        lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=4, target_modules=TARGETS[targets]))
        assert close(model(x, **masks)[kept], y[kept], factor=32)
        fill(model)
        z = model(x, **masks)
        assert not close(z[kept], y[kept], factor=1000)
        lora.merge(model)
        assert close(model(x, **masks)[kept], z[kept], factor=64)
        plain = copy.deepcopy(model)
        lora.merge(plain, keep=False)
        assert list(plain.state_dict()) == list(encoder().state_dict())
        assert close(plain(x, **masks)[kept], z[kept], factor=64)
        lora.eject(model)
        assert snapshot(model) == before
        assert same_bits(model(x, **masks), y)


@pytest.mark.parametrize("part", ["linear1", "self_attn.out_proj", "self_attn"])
def test_a_part_of_an_encoder_that_has_another_name_before_acts_in_its_fast_path(part):
    layer = encoder().layers[0]
    model = nn.ModuleDict({"again": layer.get_submodule(part), "layer": layer}).eval()
    before, x = snapshot(model), torch.randn(3, 4, 8)
    with torch.no_grad():
        y = layer(x)
        lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=4, target_modules=["again"]))
        fill(model)
        z = layer(x)
        assert not close(z, y, factor=1000)
        with lora.merged(model):
            assert close(layer(x), z, factor=64)
    lora.eject(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("options", [{"norm_first": True}, {"batch_first": False}, {"activation": "gelu"}, {"bias": False}])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_an_encoder_of_another_make(options, training):
    model, x = encoder(**options).train(training), torch.randn(4, 4, 8)
    with torch.no_grad():
        y = model(x)
        lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=4))
        fill(model)
        z = model(x)
        assert not close(z, y, factor=1000)
        lora.merge(model)
        assert close(model(x), z, factor=64)
        lora.eject(model)
        assert same_bits(model(x), y)


@pytest.mark.parametrize("targets", ["all-linear", ["multihead_attn"], ["self_attn.q_proj", "linear2"]])
@pytest.mark.parametrize("whole", [False, True])
def test_a_decoder_computes_with_its_updates(targets, whole):
    if whole:
        model = nn.Transformer(8, 2, 1, 1, 12, dropout=0.0, batch_first=True)
    else:
        model = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True), 2)
    widely(model)
    source, target = torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    args = (source, target) if whole else (target, source)
    masks = {"tgt_mask": CAUSAL, "memory_key_padding_mask": PADDING, "tgt_is_causal": True}
    for training in (True, False):
        model.train(training)
        y, before = model(*args, **masks), snapshot(model)
        names = lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=4, target_modules=targets))
        assert len(names) >= 2
        fill(model)
        z = model(*args, **masks)
        assert not close(z, y, factor=1000)
        z.sum().backward()
        assert all(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)
        model.zero_grad()
        with lora.merged(model):
            assert close(model(*args, **masks), z, factor=64)
        lora.eject(model)
        assert snapshot(model) == before
        assert same_bits(model(*args, **masks), y)


def test_layers_of_0_1_in_an_encoder_act_in_its_fast_path():
    model, x = encoder(), torch.randn(3, 4, 8)
    for layer in model.layers:
        for merge_weights, name in ((True, "linear1"), (False, "linear2")):
            old = layer.get_submodule(name)
            new = lora.Linear(old.in_features, old.out_features, r=2, merge_weights=merge_weights)
            new.load_state_dict(old.state_dict(), strict=False)
            setattr(layer, name, new)
    fill(model)
    y = model.train()(x)
    with torch.no_grad():
        assert close(model.eval()(x), y, factor=64)
        assert model.layers[0].linear1.merged
        with lora.disabled(model):
            bare = model(x)
        assert not close(bare, y, factor=64)
        assert close(model(x), y, factor=64)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], ["linear1"]])
def test_an_encoder_compiles_and_exports(targets):
    torch._dynamo.reset()
    model, x = nn.Sequential(encoder().layers[0]).eval(), torch.randn(3, 4, 8)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=targets))
    fill(model)
    y = model(x)
    assert close(torch.compile(model, fullgraph=True, backend="eager")(x), y, factor=16)
    assert close(torch.export.export(model, (x,)).module()(x), y, factor=16)


def test_only_the_adapted_attention_of_a_model_is_another_class():
    model = encoder()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0.self_attn.q_proj"]))
    assert type(model.layers[1].self_attn) is nn.MultiheadAttention
    assert isinstance(model.layers[0].self_attn, nn.MultiheadAttention)
    assert type(model.layers[0].self_attn).__name__ == "LoRAMultiheadAttention"
    holder = Holder(model)
    assert set(lora.extract(holder).layers) == {"layer.layers.0.self_attn.q_proj"}
