"""Ours against loralib 0.1.2, layers and models: the same call after the same seed, the same tensors, the same steps.

Each drawn case is compared twice: with 0.1.2, where every difference must be one that a row of the tables below names and
`UPGRADING.md` lists; and, row or no row, with a plain torch layer in float64 that has W + s·B·A written out.
"""

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import loralib as lora
from loralib import ops
from models import close, same_bits, trainable
from peers import loralib_0_1

CASES = {"Linear": 550, "MergedLinear": 550, "Embedding": 450, "Conv2d": 550, "models": 250}
TOLERANCE = 2048  # times the resolution of the dtype: sums of up to 100 terms, scaled by up to 16, and merged up to five times
UPGRADING = Path(__file__).parents[1] / "UPGRADING.md"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*larger than both sides"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),  # torch's own, of the plain layer too
]


# --- a case ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A layer and what is done with it. `steps`: "train", "eval", "edit" (new factors, in place) and "load" (new factors,
    by load_state_dict), before one forward and one backward pass. `input`: the shape of x, or of the token numbers."""

    kind: str
    sizes: tuple[int, ...]
    options: dict[str, Any]
    input: tuple[int, ...]
    steps: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def get(self, option: str, default: Any = None) -> Any:
        return self.options.get(option, default)

    @property
    def has_factors(self) -> bool:
        return self.get("r", 0) > 0 and (self.kind != "MergedLinear" or any(self.get("enable_lora", [False])))

    @property
    def scaling(self) -> float:
        return self.get("lora_alpha", 1) / self.get("r")

    @property
    def outcome(self) -> tuple[bool, int, bool, set[str]]:
        """Whether ours is merged in the end; which factors it holds, counted from 0; whether they were edited since it was
        merged, so that it computes with them unmerged; and what was done while it was merged."""
        merged, held, stale, done = False, 0, False, set()
        for step in self.steps:
            was_merged = merged
            if step in ("train", "eval"):
                merged = step == "eval" and self.has_factors and self.get("merge_weights", True)
            else:
                held += 1
            if not (merged and was_merged) or step in ("load", "eval"):
                stale = False
            if step == "edit" and merged:
                stale = True
            if was_merged:
                done.add(step)
        return merged, held, stale, done

    @property
    def merged(self) -> bool:
        return self.outcome[0]

    @property
    def training(self) -> bool:
        return [step for step in ("train", *self.steps) if step in ("train", "eval")][-1] == "train"

    @property
    def drops(self) -> bool:
        return self.has_factors and self.training and self.get("lora_dropout", 0) > 0

    def random(self, shape: torch.Size, salt: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(97 * self.seed + salt), dtype=self.dtype)

    def x(self) -> Tensor:
        if self.kind == "Embedding":
            return torch.randint(self.sizes[0], self.input, generator=torch.Generator().manual_seed(self.seed))
        return self.random(torch.Size(self.input), 1).requires_grad_()

    def build(self, module: ModuleType) -> nn.Module:
        torch.manual_seed(self.seed)
        return getattr(module, self.kind)(*self.sizes, dtype=self.dtype, **self.options)

    def tensors(self, layer: nn.Module, version: int) -> dict[str, Tensor]:
        """Random values for all tensors of ours; `version` counts the factors."""
        shapes = {name: p.shape for name, p in layer.named_parameters()}
        salts = {name: i + (10 * version if "lora_" in name else 0) for i, name in enumerate(shapes, start=2)}
        return {name: self.random(shape, salts[name]) for name, shape in shapes.items()}


def renamed(name: str) -> str:
    """A name of 0.1.2 as ours: its convolutions keep `weight` and `bias` in a layer `conv`."""
    return name.replace("conv.", "")


def named(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in sorted((renamed(name), p) for name, p in layer.named_parameters())}


ATTRIBUTES = ("r", "lora_alpha", "merge_weights", "fan_in_fan_out", "enable_lora", "training", "scaling")


def plain_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- what happens to a layer ----------------------------------------------------------------------------------------


def run(case: Case, layer: nn.Module, shapes_of: nn.Module) -> dict[str, Any]:
    """Everything that can be seen of a layer, by name of the aspect."""
    seen: dict[str, Any] = {
        "random state": torch.get_rng_state(),
        "parameters": {name: p.detach().clone() for name, p in named(layer).items()},
        "requires_grad": {name: p.requires_grad for name, p in named(layer).items()},
        "state dict keys": {renamed(name) for name in layer.state_dict()},
        "spelling of the keys": set(layer.state_dict()),
        "contiguity": {name: p.is_contiguous() for name, p in named(layer).items()},
        "attributes": {
            name: plain_value(getattr(layer, name, None)) for name in ATTRIBUTES[: None if case.has_factors else -1]
        },
    }
    set_tensors(layer, case.tensors(shapes_of, 0))
    version, returned = 0, []
    for step in case.steps:
        if step in ("train", "eval"):
            returned.append(getattr(layer, step)() is layer)
            continue
        version += 1
        factors = {name: t for name, t in case.tensors(shapes_of, version).items() if "lora_" in name}
        set_tensors(layer, factors) if step == "edit" else layer.load_state_dict(factors, strict=False)
    seen |= {"returned by train()": all(returned), "merged": layer.merged, "mode": layer.training}
    try:
        seen |= forward_and_backward(case, layer)
    except (AttributeError, RuntimeError) as error:
        seen["raises"] = type(error)
    seen["state dict values"] = {renamed(name): t.clone() for name, t in sorted(layer.state_dict().items())}
    return seen


def set_tensors(layer: nn.Module, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in named(layer).items():
            if name in tensors:
                parameter.copy_(tensors[name])


def forward_and_backward(case: Case, layer: nn.Module) -> dict[str, Any]:
    x = case.x()
    torch.manual_seed(case.seed + 1)
    y = layer(x)
    if y.requires_grad:
        y.backward(case.random(y.shape, 1000))
    gradients = {"x": x.grad} | {name: p.grad for name, p in named(layer).items()}
    dense = {name: g if g is None or not g.is_sparse else g.to_dense() for name, g in gradients.items()}
    return {"output": y.detach()} | {f"gradient of {name}": g for name, g in dense.items()}


# --- the formula ----------------------------------------------------------------------------------------------------


def plain(case: Case, **changes: Any) -> nn.Module:
    """Torch's own layer of the kind, in float64."""
    ours = {"r", "lora_alpha", "lora_dropout", "merge_weights", "enable_lora", "fan_in_fan_out", "max_norm", "sparse"}
    options = {name: value for name, value in case.options.items() if name not in ours} | changes
    cls = {"MergedLinear": nn.Linear}.get(case.kind) or getattr(nn, case.kind)
    return cls(*case.sizes, dtype=torch.float64, **options)


def written_out(case: Case, A: Tensor, B: Tensor, W: Tensor) -> Tensor:
    """s·B·A in the layout in which torch's own layer keeps `W`."""
    if case.kind == "Embedding":
        rows = torch.arange(len(W)) != case.get("padding_idx", -1)
        return case.scaling * (B @ A).t() * rows.unsqueeze(-1)
    if case.kind != "MergedLinear":
        return case.scaling * (B @ A).reshape(W.shape)
    mask, r = case.get("enable_lora"), case.get("r")
    width, n, rows = len(W) // len(mask), 0, []
    for on in mask:
        rows.append(B[n * width : (n + 1) * width] @ A[n * r : (n + 1) * r] if on else torch.zeros_like(W[:width]))
        n += on
    return case.scaling * torch.cat(rows)


def formula(case: Case, layer: nn.Module, leaves: dict[str, Tensor], x: Tensor) -> Tensor:
    """y = W(x) + b + s·(B·A)(dropout(x)), with the plain `layer` for W(·)."""
    own = leaves["weight"].t() if case.get("fan_in_fan_out") else leaves["weight"]
    if case.get("max_norm"):
        own = own + (torch.renorm(own, 2.0, 0, case.get("max_norm")) - own).detach()  # torch differentiates past it
    bias = {"bias": leaves["bias"]} if "bias" in leaves else {}
    y = torch.func.functional_call(layer, {"weight": own} | bias, (x,))
    if not case.has_factors:
        return y
    if case.drops:
        torch.manual_seed(case.seed + 1)
        x = x * F.dropout(torch.ones(x.shape, dtype=case.dtype), case.get("lora_dropout"))
    delta = written_out(case, leaves["lora_A"], leaves["lora_B"], own)
    return y + torch.func.functional_call(layer, {"weight": delta} | {name: 0 * b for name, b in bias.items()}, (x,))


def expected(case: Case, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Output and gradients by the formula in float64."""
    x = case.x().detach()
    leaves = {name: t.double() for name, t in tensors.items()} | ({"x": x.double()} if x.is_floating_point() else {})
    merged, _, stale, _ = case.outcome
    fixed = ({"weight"} if case.has_factors else set()) | ({"lora_A", "lora_B"} if merged and not stale else set())
    trained = [leaf.requires_grad_() for name, leaf in leaves.items() if name not in fixed]

    def differentiate(layer: nn.Module) -> tuple[Tensor, dict[str, Tensor | None]]:
        y = formula(case, layer, leaves, leaves.get("x", x))
        computed = torch.autograd.grad(y, trained, case.random(y.shape, 1000).double()) if trained else ()
        names = [name for name in leaves if name not in fixed]
        return y.detach(), dict.fromkeys(["x", *leaves]) | dict(zip(names, computed, strict=True))

    y, gradients = differentiate(plain(case))
    if case.get("scale_grad_by_freq") and case.has_factors:  # which concerns what is looked up, A, and not B
        gradients["lora_B"] = differentiate(plain(case, scale_grad_by_freq=False))[1]["lora_B"]
    return {"output": y} | {f"gradient of {name}": g for name, g in gradients.items()}


def as_stored(case: Case, name: str, t: Tensor) -> Tensor:
    """A tensor with the strides that it must have: a transposed weight is a view of the matrix that the product reads."""
    return t.t().contiguous().t() if name == "weight" and case.get("fan_in_fan_out") else t


def faults(case: Case, layer: nn.Module, seen: dict[str, Any]) -> set[str]:
    """Where ours is not what the formula says, whatever 0.1.2 does."""
    now = case.tensors(layer, case.outcome[1])
    right = expected(case, now) | {
        "requires_grad": {name: name != "weight" or not case.has_factors for name in sorted(now)},
        "state dict keys": set(now),
        "contiguity": {name: as_stored(case, name, now[name]).is_contiguous() for name in sorted(now)},
        "returned by train()": True,
        "merged": case.merged,
        "mode": case.training,
    }
    if not case.get("max_norm"):
        right["state dict values"] = now
    wrong = {aspect for aspect, value in right.items() if aspect not in seen or not agree(seen[aspect], value)}
    exact = [same_bits(seen["state dict values"][name], t) for name, t in now.items()]
    return wrong | (set() if all(exact) or case.get("max_norm") else {"bits of the state dict"})


# --- the comparison -------------------------------------------------------------------------------------------------


def agree(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(agree(a[key], b[key]) for key in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.numel() == b.numel() == 0 or close(a, b, factor=TOLERANCE)
    return type(a) is type(b) and a == b


def compare(case: Case, alter: Callable[[nn.Module], object] = lambda layer: None) -> tuple[set[str], set[str]]:
    """In what ours differs from 0.1.2, and in what it differs from the formula. `alter` may spoil ours first."""
    ours = case.build(lora)
    alter(ours)
    mine = run(case, ours, ours)
    theirs = run(case, case.build(loralib_0_1()), ours)
    exact = {"random state": torch.equal, "parameters": lambda a, b: all(map(same_bits, a.values(), b.values()))}
    both = mine.keys() | theirs.keys()
    if "raises" in theirs:
        both = {aspect for aspect in both if aspect in theirs and aspect in mine} | {"raises"}
    different = {aspect for aspect in both if not exact.get(aspect, agree)(mine.get(aspect), theirs.get(aspect))}
    return different, faults(case, ours, mine)


# --- where 0.1.2 is wrong, or ours differs with intent --------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """upgrading: words of UPGRADING.md that tell users. applies: to which cases. explains: what may differ then.
    example: a case in which it does differ."""

    upgrading: str
    applies: Callable[[Case], bool]
    explains: set[str]
    example: Case


EVERY_GRADIENT = {"gradient of x", "gradient of lora_A", "gradient of lora_B"}
LINEAR = Case("Linear", (5, 4), {"r": 2, "lora_alpha": 3}, (3, 5))
FUSED = Case("MergedLinear", (5, 6), {"r": 2, "enable_lora": [True, False, True]}, (3, 5))
EMBEDDING = Case("Embedding", (5, 4), {"r": 2, "lora_alpha": 3}, (3, 6))
CONVOLUTION = Case("Conv2d", (4, 6, 3), {"r": 2, "lora_alpha": 3}, (2, 4, 5, 5))

ROWS = {  # by layer
    "the state dict of a merged layer": Row(
        "holds merged weights",
        lambda case: case.merged,
        {"state dict values"},
        replace(LINEAR, steps=("eval",)),
    ),
    "factors edited while merged": Row(
        "a changed B leaves a wrong weight",
        lambda case: "edit" in case.outcome[-1],
        {"output", "state dict values"} | EVERY_GRADIENT,
        replace(LINEAR, steps=("eval", "edit", "train")),
    ),
    "factors loaded while merged": Row(
        "into a merged layer has no effect",
        lambda case: "load" in case.outcome[-1],
        {"output", "state dict values"} | EVERY_GRADIENT,
        replace(LINEAR, steps=("eval", "load")),
    ),
    "train() and eval() return nothing": Row(
        "return nothing",
        lambda case: bool({"train", "eval"} & set(case.steps)),
        {"returned by train()"},
        replace(LINEAR, steps=("train",)),
    ),
    "merged, of a layer without factors": Row(
        "the attribute `merged` becomes True",
        lambda case: not case.has_factors and not case.training and case.get("merge_weights", True),
        {"merged"},
        replace(LINEAR, options={"r": 0}, steps=("eval",)),
    ),
    "no slice enabled": Row(
        "no slice enabled",
        lambda case: case.kind == "MergedLinear" and case.get("r") > 0 and not case.has_factors,
        {"raises"},
        replace(FUSED, options={"r": 2}),
    ),
    "the padding row of an embedding": Row(
        "adds the update to the padding row",
        lambda case: case.has_factors and case.get("padding_idx") is not None,
        {"output", "gradient of lora_B"},
        replace(EMBEDDING, options={"r": 2, "padding_idx": 1}),
    ),
    "max_norm": Row(
        "with `max_norm`",
        lambda case: case.has_factors and case.get("max_norm") is not None,
        {"output", "gradient of lora_B", "state dict values"},
        replace(EMBEDDING, options={"r": 2, "max_norm": 1.0}),
    ),
    "sparse": Row(
        "with `sparse=True`",
        lambda case: case.has_factors and case.get("sparse", False) and not case.merged,
        {"raises"},
        replace(EMBEDDING, options={"r": 2, "sparse": True}),
    ),
    "the dropout of convolutions": Row(
        "`Conv2d` ignores `lora_dropout`",
        lambda case: case.kind == "Conv2d" and case.drops,
        {"output"} | EVERY_GRADIENT,
        replace(CONVOLUTION, options={"r": 2, "lora_dropout": 0.5}),
    ),
    "the keys of convolutions": Row(
        "keeps its weight as `conv.weight`",
        lambda case: case.kind.startswith("Conv"),
        {"spelling of the keys"},
        CONVOLUTION,
    ),
}


def check(case: Case) -> None:
    with ops.use("reference") if case.drops else nullcontext():  # whose dropout draws from torch's stream as 0.1's does
        different, wrong = compare(case)
    assert not wrong, f"not what the formula says: {sorted(wrong)}"
    unexplained = different - {aspect for row in ROWS.values() if row.applies(case) for aspect in row.explains}
    assert not unexplained, f"not what 0.1.2 does, and in no row: {sorted(unexplained)}"


# --- drawn cases ----------------------------------------------------------------------------------------------------


RANKS = st.integers(0, 3)
LEADING = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@st.composite
def shared_options(draw: st.DrawFn) -> dict[str, Any]:
    return {"r": draw(RANKS), "lora_alpha": draw(st.sampled_from([1, 2, 16, 0.5])), "merge_weights": draw(st.booleans())}


@st.composite
def around(draw: st.DrawFn, kind: str, sizes: tuple[int, ...], options: dict[str, Any], shape: tuple[int, ...]) -> Case:
    steps = draw(st.lists(st.sampled_from(["train", "eval", "eval", "edit", "load"]), max_size=5))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return Case(kind, sizes, options, shape, tuple(steps), dtype, draw(st.integers(0, 2**16)))


@st.composite
def linear_options(draw: st.DrawFn) -> dict[str, Any]:
    dropout = draw(st.sampled_from([0.0, 0.0, 0.4]))
    return draw(shared_options()) | {
        "lora_dropout": dropout,
        "fan_in_fan_out": draw(st.booleans()),
        "bias": draw(st.booleans()),
    }


@st.composite
def linears(draw: st.DrawFn) -> Case:
    d, k = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    return draw(around("Linear", (d, k), draw(linear_options()), (*draw(LEADING), d)))


@st.composite
def merged_linears(draw: st.DrawFn) -> Case:
    mask = draw(st.lists(st.booleans(), min_size=1, max_size=4))
    d, k = draw(st.integers(1, 8)), len(mask) * draw(st.integers(1, 3))
    options = draw(linear_options()) | draw(st.sampled_from([{"enable_lora": mask}] * 7 + [{}]))
    return draw(around("MergedLinear", (d, k), options, (*draw(LEADING), d)))


@st.composite
def embeddings(draw: st.DrawFn) -> Case:
    n, k = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    special: list[dict[str, Any]] = [{}] * 3 + [{"padding_idx": draw(st.integers(0, n - 1))}] * 2
    special += [{"max_norm": 0.7}, {"sparse": True, "scale_grad_by_freq": False}]  # torch has not both
    options = draw(shared_options()) | {"scale_grad_by_freq": draw(st.booleans())} | draw(st.sampled_from(special))
    return draw(around("Embedding", (n, k), options, draw(LEADING)))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    small = st.integers(1, 2)
    kernel, stride, dilation, groups = draw(st.integers(1, 3)), draw(small), draw(small), draw(small)
    d, k = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    height, width = (dilation * (kernel - 1) + 1 + draw(st.integers(0, 2)) for _ in range(2))
    padding = draw(st.sampled_from([0, min(1, height - 1, width - 1), "valid"] + (["same"] if stride == 1 else [])))
    own = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
    own["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    options = draw(shared_options()) | {"lora_dropout": draw(st.sampled_from([0.0, 0.0, 0.4]))} | own
    return draw(around("Conv2d", (d, k, kernel), options, (*draw(st.sampled_from([(), (1,), (2,)])), d, height, width)))


class TestLinear:
    @settings(max_examples=CASES["Linear"])
    @given(case=linears())
    @pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
    def test_it_does_what_0_1_did(self, case):
        check(case)


class TestMergedLinear:
    @settings(max_examples=CASES["MergedLinear"])
    @given(case=merged_linears())
    @pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
    def test_it_does_what_0_1_did(self, case):
        check(case)


class TestEmbedding:
    @settings(max_examples=CASES["Embedding"])
    @given(case=embeddings())
    @pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
    def test_it_does_what_0_1_did(self, case):
        check(case)


class TestConv2d:
    @settings(max_examples=CASES["Conv2d"])
    @given(case=convolutions())
    @pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
    def test_it_does_what_0_1_did(self, case):
        check(case)


# --- models: what is trained, what is saved, what is loaded ---------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A layer of a model. kind: one of `KINDS`."""

    name: str
    kind: str
    r: int = 0
    bias: bool = True

    @property
    def has_factors(self) -> bool:
        return self.r > 0 and self.kind in ("Linear", "MergedLinear", "Embedding", "Conv2d")

    def build(self, module: ModuleType) -> nn.Module:
        return KINDS[self.kind](module, self.r, self.bias)


def with_buffer(module: ModuleType, r: int, bias: bool) -> nn.Module:
    made = nn.Module()
    made.register_buffer("bias", torch.ones(2))
    return made


KINDS: dict[str, Callable[[ModuleType, int, bool], nn.Module]] = {
    "Linear": lambda module, r, bias: module.Linear(4, 3, r=r, bias=bias),
    "MergedLinear": lambda module, r, bias: module.MergedLinear(4, 4, r=r, enable_lora=[True, False], bias=bias),
    "MergedLinear, none enabled": lambda module, r, bias: module.MergedLinear(4, 4, r=r, enable_lora=[False], bias=bias),
    "Embedding": lambda module, r, bias: module.Embedding(5, 3, r=r),
    "Conv2d": lambda module, r, bias: module.Conv2d(2, 4, 3, r=r, bias=bias),
    "nn.Linear": lambda module, r, bias: nn.Linear(3, 2, bias=bias),
    "nn.LayerNorm": lambda module, r, bias: nn.LayerNorm(3, bias=bias),
    "a buffer": with_buffer,
}


@dataclass(frozen=True)
class Model:
    """A model, whether all of it is frozen at first, and the mode of biases."""

    layers: tuple[Layer, ...]
    bias: str = "none"
    frozen: bool = False
    seed: int = 0

    def build(self, module: ModuleType) -> nn.Module:
        torch.manual_seed(self.seed)
        model = nn.ModuleDict({layer.name: layer.build(module) for layer in self.layers})
        return model.requires_grad_(False) if self.frozen else model

    def wanted(self) -> set[str]:
        """What is to be trained and saved."""
        factors = {f"{layer.name}.{leaf}" for layer in self.layers if layer.has_factors for leaf in ("lora_A", "lora_B")}
        biased = [layer for layer in self.layers if layer.bias and layer.kind not in ("Embedding", "a buffer")]
        chosen = [layer for layer in biased if self.bias == "all" or (self.bias == "lora_only" and layer.has_factors)]
        return factors | {f"{layer.name}.bias" for layer in chosen}


@dataclass(frozen=True)
class ModelRow:
    """As `Row`. applies: to which tensor `leaf` of which layer of a model, for the aspect "trained" or "saved"."""

    upgrading: str
    applies: Callable[[Model, Layer, str, str], bool]
    example: Model


MODEL_ROWS = {
    "the bias of a convolution": ModelRow(
        "the bias of a convolution",
        lambda model, layer, leaf, aspect: model.bias == "lora_only" and layer.kind == "Conv2d" and leaf == "bias",
        Model((Layer("a", "Conv2d", 2),), "lora_only"),
    ),
    "the bias of a layer without factors": ModelRow(
        "trains the bias of a layer with r = 0",
        lambda model, layer, leaf, aspect: (
            model.bias == "lora_only" and not layer.has_factors and leaf == "bias" and aspect == "trained"
        ),
        Model((Layer("a", "Linear", 2), Layer("b", "MergedLinear, none enabled", 2)), "lora_only"),
    ),
    "a name that contains bias": ModelRow(
        "any name that contains",
        lambda model, layer, leaf, aspect: model.bias == "all" and "bias" in layer.name,
        Model((Layer("a", "Linear", 2), Layer("rel_bias_table", "nn.Linear")), "all"),
    ),
    "a buffer named bias": ModelRow(
        "parameters *named* `bias`",
        lambda model, layer, leaf, aspect: model.bias == "all" and layer.kind == "a buffer" and aspect == "saved",
        Model((Layer("a", "Linear", 2), Layer("b", "a buffer")), "all"),
    ),
    "a name that contains lora_": ModelRow(
        "a *module* of such a name is one like any other",
        lambda model, layer, leaf, aspect: "lora_" in layer.name,
        Model((Layer("a", "Linear", 2), Layer("explora_net", "nn.Linear")), "all"),
    ),
    "what was frozen before": ModelRow(
        "only freezes",
        lambda model, layer, leaf, aspect: model.frozen and aspect == "trained" and leaf.startswith("lora_"),
        Model((Layer("a", "Linear", 2),), frozen=True),
    ),
}


def found_in(model: Model, module: ModuleType) -> dict[str, set[str]]:
    """What `module` saves of the model, and what it marks as trainable."""
    built = model.build(module)
    saved = {renamed(name) for name in module.lora_state_dict(built, bias=model.bias)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[a-zA-Z]+ has no LoRA parameter")
        module.mark_only_lora_as_trainable(built, bias=model.bias)
    return {"saved": saved, "trained": {renamed(name) for name in trainable(built)}}


def unlike_0_1(model: Model) -> set[tuple[str, str]]:
    """(aspect, name) of the tensors in which the libraries differ; ours is as it must be."""
    ours, theirs = found_in(model, lora), found_in(model, loralib_0_1())
    assert ours == {"saved": model.wanted(), "trained": model.wanted()}
    return {(aspect, name) for aspect in ours for name in ours[aspect] ^ theirs[aspect]}


def explained(model: Model, aspect: str, name: str, rows: dict[str, ModelRow]) -> bool:
    owner, _, leaf = name.partition(".")
    layer = next(layer for layer in model.layers if layer.name == owner)
    return any(row.applies(model, layer, leaf, aspect) for row in rows.values())


@st.composite
def models(draw: st.DrawFn) -> Model:
    names = draw(
        st.lists(st.sampled_from(["a", "b", "c", "d", "rel_bias_table", "explora_net"]), min_size=1, max_size=5, unique=True)
    )
    layers = [Layer(name, draw(st.sampled_from(list(KINDS))), draw(st.integers(0, 2)), draw(st.booleans())) for name in names]
    return Model(
        tuple(layers), draw(st.sampled_from(["none", "lora_only", "all"])), draw(st.booleans()), draw(st.integers(0, 99))
    )


class TestOtherConvolutionsOfKernelOne:
    """With a larger kernel they never worked in 0.1."""

    @pytest.mark.parametrize("kind", ["Conv1d", "Conv3d"])
    @pytest.mark.parametrize("steps", [(), ("eval",), ("eval", "load", "train")])
    @pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
    def test_they_do_what_0_1_did(self, kind, steps):
        case = Case(kind, (4, 6, 1), {"r": 2, "lora_alpha": 3}, (2, 4, 5) if kind == "Conv1d" else (2, 4, 3, 2, 2), steps)
        shapes = [{name: p.shape for name, p in named(case.build(module)).items()} for module in (lora, loralib_0_1())]
        assert shapes[0] == shapes[1]
        check(case)


class TestModels:
    @settings(max_examples=CASES["models"])
    @given(model=models())
    def test_they_train_and_save_what_they_did_in_0_1(self, model):
        unexplained = {(aspect, name) for aspect, name in unlike_0_1(model) if not explained(model, aspect, name, MODEL_ROWS)}
        assert not unexplained

    @settings(max_examples=CASES["models"])
    @given(model=models(), evaluation=st.booleans())
    @pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
    def test_their_state_dicts_hold_and_load_what_those_of_0_1_do(self, model, evaluation):
        ours, theirs = model.build(lora).train(not evaluation), model.build(loralib_0_1())
        mine, other = ours.state_dict(), theirs.state_dict()
        assert same_tensors(mine, other)
        both = {name: t for name, t in lora.lora_state_dict(ours, bias=model.bias).items() if name in other}
        assert same_tensors(both, {name: other[name] for name in both})
        different = replace(model, seed=model.seed + 1)
        for state, strict in ((other, True), (loralib_0_1().lora_state_dict(theirs, bias=model.bias), False)):
            loaded = different.build(lora).train(not evaluation)
            assert not loaded.load_state_dict({name: t.clone() for name, t in state.items()}, strict=strict).unexpected_keys
            held = loaded.state_dict()
            assert all(same_bits(held[renamed(name)], t) for name, t in state.items())
        if not any(layer.kind == "Conv2d" for layer in model.layers):
            loaded = different.build(loralib_0_1())
            loaded.load_state_dict(mine)
            assert same_tensors(mine, loaded.state_dict())


def same_tensors(mine: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    other = {renamed(name): t for name, t in other.items()}
    return mine.keys() == other.keys() and all(same_bits(t, other[name]) for name, t in mine.items())


# --- the tables are true --------------------------------------------------------------------------------------------


class TestTheTables:
    @pytest.mark.parametrize("name", ROWS)
    @pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
    def test_a_row_differs_from_0_1_where_it_says_so_and_follows_the_formula(self, name):
        row = ROWS[name]
        different, wrong = compare(row.example)
        assert row.applies(row.example)
        assert not wrong
        assert different & row.explains
        check(row.example)

    @pytest.mark.parametrize("name", MODEL_ROWS)
    def test_a_row_about_models_differs_from_0_1_where_it_says_so(self, name):
        model, row = MODEL_ROWS[name].example, {name: MODEL_ROWS[name]}
        assert any(explained(model, aspect, tensor, row) for aspect, tensor in unlike_0_1(model))

    def test_no_row_explains_anything_about_a_plain_case(self):
        cases = [replace(case, steps=()) for case in (LINEAR, FUSED, EMBEDDING)]
        assert not [name for name, row in ROWS.items() for case in cases if row.applies(case)]

    @pytest.mark.parametrize("name", [*ROWS, *MODEL_ROWS])
    def test_upgrading_tells_users(self, name):
        words = " ".join(UPGRADING.read_text(encoding="utf-8").split())
        assert (ROWS | MODEL_ROWS)[name].upgrading in words

    def test_there_are_enough_drawn_cases(self):
        assert sum(CASES.values()) + CASES["models"] >= 2000  # models are drawn for two tests


# --- the comparison can fail ----------------------------------------------------------------------------------------


def perturb(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.lora_A[0, 0] += torch.finfo(layer.lora_A.dtype).eps


def drift(layer: nn.Module) -> None:
    train = layer.train

    def drifting(mode: bool = True) -> nn.Module:
        train(mode)
        layer.pristine_weight.data *= 1 + 2 * torch.finfo(layer.weight.dtype).eps
        return layer

    layer.train = drifting


def forget_the_update(layer: nn.Module) -> None:
    layer.disabled = True


def return_nothing(layer: nn.Module) -> None:
    train = layer.train
    layer.train = lambda mode=True: [train(mode), None][1]


SPOILED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "one bit of one factor": (perturb, "parameters"),
    "a number drawn too many": (lambda layer: torch.rand(1), "random state"),
    "a frozen factor": (lambda layer: layer.lora_A.requires_grad_(False), "requires_grad"),
    "a weight that is trained": (lambda layer: layer.weight.requires_grad_(), "requires_grad"),
    "another scaling": (lambda layer: setattr(layer, "scaling", layer.scaling * (1 + 1e-9)), "attributes"),
    "no update": (forget_the_update, "output"),
    "another tensor": (lambda layer: layer.register_buffer("more", torch.ones(1)), "state dict keys"),
    "another base": (lambda layer: layer.register_forward_hook(lambda *seen: seen[-1] + 1e-9), "output"),
    "a merge that does not happen": (lambda layer: setattr(layer, "merge_weights", False), "merged"),
    "a changed gradient": (lambda layer: layer.lora_B.register_hook(lambda g: g * (1 + 1e-9)), "gradient of lora_B"),
}


class TestTheComparison:
    @pytest.mark.parametrize("case", [LINEAR, FUSED, EMBEDDING, CONVOLUTION], ids=lambda case: case.kind)
    @pytest.mark.parametrize("how", SPOILED)
    @pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
    def test_a_spoiled_layer_is_found_out(self, how, case):
        spoil, aspect = SPOILED[how]
        case = replace(case, steps=("eval",) if aspect == "merged" else ())
        assert aspect not in compare(case)[0]
        assert aspect in compare(case, spoil)[0]

    @pytest.mark.parametrize(
        ("spoil", "aspect"), [(drift, "bits of the state dict"), (return_nothing, "returned by train()")], ids=["drift", "None"]
    )
    def test_a_layer_that_is_as_wrong_as_0_1_is_found_out_by_the_formula(self, spoil, aspect):
        case = replace(LINEAR, steps=("eval", "train"), dtype=torch.float32)
        assert not compare(case)[1]
        assert aspect in compare(case, spoil)[1]

    @pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
    def test_a_disagreement_in_no_row_fails(self, monkeypatch):
        for name in list(ROWS):
            monkeypatch.delitem(ROWS, name)
        with pytest.raises(AssertionError, match="state dict values"):
            check(replace(LINEAR, steps=("eval",)))


# --- what users of 0.1 wrote ----------------------------------------------------------------------------------------


OWN_LAYERS = [LINEAR, FUSED, EMBEDDING, CONVOLUTION]


def filled(case: Case, module: ModuleType) -> nn.Module:
    layer = case.build(module)
    set_tensors(layer, case.tensors(case.build(lora), 0))
    return layer


@pytest.mark.parametrize("module", [loralib_0_1, lambda: lora], ids=["0.1.2", "ours"])
class TestUsersCode:
    """Code that works with 0.1.2, which the first parameter proves, goes on working."""

    @pytest.mark.parametrize("case", OWN_LAYERS, ids=lambda case: case.kind)
    def test_the_input_may_be_called_x(self, module, case):
        layer = filled(case, module())
        assert torch.equal(layer(x=case.x()), layer(case.x()))

    def test_the_names_of_the_modules(self, module):
        for name in ("layers", "utils"):
            import_module(f"{module().__name__}.{name}")
        assert module().layers.LoRALayer is module().LoRALayer
        assert module().utils.mark_only_lora_as_trainable is module().mark_only_lora_as_trainable

    def test_numbers_of_numpy(self, module):
        assert module().Linear(8, 8, r=np.int64(2), lora_alpha=np.int64(4), lora_dropout=np.float32(0.5)).scaling == 2

    def test_the_default_mask(self, module):
        assert module().MergedLinear(4, 4).enable_lora == [False]

    @pytest.mark.parametrize("first", [False, True])
    def test_a_layer_of_ones_own_may_initialise_its_bases_in_any_order(self, module, first):
        base = module().LoRALayer

        class Mine(nn.Linear, base):
            def __init__(self) -> None:
                if first:
                    base.__init__(self, r=2, lora_alpha=4, lora_dropout=0.0, merge_weights=False)
                nn.Linear.__init__(self, 4, 3)
                if not first:
                    base.__init__(self, r=2, lora_alpha=4, lora_dropout=0.0, merge_weights=False)
                self.lora_gate = nn.Parameter(torch.zeros(3))

        model = nn.Sequential(Mine())
        module().mark_only_lora_as_trainable(model, bias="lora_only")
        assert trainable(model) == set(module().lora_state_dict(model, bias="lora_only")) == {"0.lora_gate", "0.bias"}

    def test_a_subclass_may_have_the_forward_of_0_1(self, module):
        class Mine(module().Linear):
            def forward(self, x: Tensor) -> Tensor:
                if self.r > 0 and not self.merged:
                    y = F.linear(x, self.weight, bias=self.bias)
                    y += (self.lora_dropout(x) @ self.lora_A.transpose(0, 1) @ self.lora_B.transpose(0, 1)) * self.scaling
                    return y
                return F.linear(x, self.weight, bias=self.bias)

        layer, x = Mine(5, 4, r=2), torch.randn(3, 5)
        nn.init.normal_(layer.lora_B)
        y = layer(x)
        layer.eval()
        assert layer.merged
        assert close(layer(x), y, factor=64)
        layer.train()
        assert close(layer(x), y, factor=64)

    def test_a_subclass_of_conv_lora_may_compute_with_the_convolution_in_it(self, module):
        class Mine(module().ConvLoRA):
            def __init__(self, *args: Any, **kwargs: Any):
                super().__init__(nn.Conv2d, *args, **kwargs)

            def forward(self, x: Tensor) -> Tensor:
                if self.r > 0 and not self.merged:
                    delta = (self.lora_B @ self.lora_A).view(self.conv.weight.shape) * self.scaling
                    return self.conv._conv_forward(x, self.conv.weight + delta, self.conv.bias)
                return self.conv(x)

        layer, x = Mine(4, 6, 3, r=2), torch.randn(2, 4, 5, 5)
        nn.init.normal_(layer.lora_B)
        y = layer(x)
        layer.eval()
        assert layer.merged
        assert close(layer(x), y, factor=64)
        assert isinstance(layer, module().LoRALayer)

    def test_the_convolution_in_a_layer_has_the_weight_and_the_bias(self, module):
        layer, x = CONVOLUTION.build(module()), CONVOLUTION.x()
        assert [name for name, _ in layer.conv.named_parameters()] == ["weight", "bias"]
        assert len(list(layer.conv.parameters())) == 2
        layer.conv.weight.data.fill_(1)
        layer.conv.bias.data = torch.ones_like(layer.conv.bias)
        assert close(layer(x), F.conv2d(x, torch.ones(6, 4, 3, 3).double(), torch.ones(6).double()), factor=64)
        assert close(copy.deepcopy(layer.conv)(x), layer(x), factor=64)

    def test_freezing_the_convolution_in_a_layer_freezes_no_factor(self, module):
        layer = CONVOLUTION.build(module())
        layer.conv.requires_grad_(False)
        assert {renamed(name) for name in trainable(layer)} == {"lora_A", "lora_B"}

    def test_starting_the_convolution_in_a_layer_anew_leaves_the_factors(self, module):
        layer = filled(CONVOLUTION, module())
        before = layer.lora_B.detach().clone()
        layer.conv.reset_parameters()
        assert torch.equal(layer.lora_B, before)

    def test_a_convolution_put_into_a_layer_computes_as_it_does(self, module):
        layer, x, conv = CONVOLUTION.build(module()), CONVOLUTION.x(), nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
        layer.conv = conv
        assert close(layer(x), conv(x), factor=64)

    @pytest.mark.parametrize("case", OWN_LAYERS, ids=lambda case: case.kind)
    def test_a_weight_edited_in_training_mode_stays_edited(self, module, case):
        layer = filled(case, module())
        W = layer.conv.weight if case.kind == "Conv2d" else layer.weight
        W.data += 1
        expected = W.detach().clone()
        layer.eval()
        layer.train()
        W = layer.conv.weight if case.kind == "Conv2d" else layer.weight
        assert close(W, expected, factor=16)
        W.data = torch.ones_like(W)
        layer.eval()
        layer.train()
        assert close(layer.conv.weight if case.kind == "Conv2d" else layer.weight, torch.ones_like(W), factor=64)

    @pytest.mark.parametrize("case", OWN_LAYERS, ids=lambda case: case.kind)
    def test_a_layer_started_anew_in_evaluation_mode_stays_so(self, module, case):
        model = nn.Sequential(case.build(module()))
        model.eval()
        model[0].reset_parameters()
        y = model(case.x())
        model.train()
        assert close(model(case.x()), y, factor=64)

    def test_the_fast_path_of_transformers_reads_the_merged_weight(self, module):
        encoder, x = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), torch.randn(2, 5, 8)
        encoder.linear1 = module().Linear(8, 16, r=2)
        nn.init.normal_(encoder.linear1.lora_B)
        encoder.eval()
        y = encoder(x)  # with gradients there is no fast path
        with torch.no_grad():
            assert close(encoder(x), y, factor=64)

    def test_a_shared_layer_merges_once(self, module):
        layer = module().Linear(4, 4, r=2)
        nn.init.normal_(layer.lora_B)
        model, x = nn.Sequential(layer, nn.Tanh(), layer), torch.randn(3, 4)
        y = model(x)
        model.eval()
        assert close(model(x), y, factor=64)
        model.train()
        assert close(model(x), y, factor=64)

    @pytest.mark.parametrize("case", OWN_LAYERS, ids=lambda case: case.kind)
    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_a_change_of_dtype_reaches_all_of_it(self, module, case, mode):
        layer, x = filled(case, module()), case.x().detach()
        y = layer(x)
        getattr(layer, mode)()
        layer.float()
        assert close(layer(x.float() if x.is_floating_point() else x), y.float(), factor=256)
        layer.train()
        assert {p.dtype for p in layer.parameters()} == {torch.float32}

    @pytest.mark.parametrize("case", [LINEAR, EMBEDDING, CONVOLUTION], ids=lambda case: case.kind)
    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_fx_traces_it(self, module, case, mode):
        model, x = nn.Sequential(filled(case, module())), case.x().detach()
        getattr(model, mode)()
        assert close(torch.fx.symbolic_trace(model)(x), model(x), factor=16)

    @pytest.mark.parametrize("case", OWN_LAYERS, ids=lambda case: case.kind)
    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_replicas_of_data_parallel_compute_and_train_the_same(self, module, case, mode, monkeypatch):
        replication = import_module("torch.nn.parallel.replicate")
        copies = lambda tensors, devices, detach=False: [[t.clone() for t in tensors] for _ in devices]  # noqa: E731
        monkeypatch.setattr(replication, "_broadcast_coalesced_reshape", copies)  # which copies to GPUs
        model, x = nn.Sequential(filled(case, module())), case.x().detach()
        getattr(model, mode)()
        replica = replication.replicate(model, [0, 1])[1]
        assert close(replica(x), model(x), factor=16)
        if mode == "train":
            replica(x).sum().backward()
            assert model[0].lora_A.grad.abs().max() > 0

    @pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
    def test_a_factor_may_be_parametrized(self, module, factor):
        layer, x = filled(LINEAR, module()), LINEAR.x()
        mask = (torch.randn_like(getattr(layer, factor)) > 0).double()
        prune.custom_from_mask(layer, factor, mask)
        y = F.linear(x, layer.weight, layer.bias) + 1.5 * x @ layer.lora_A.t() @ layer.lora_B.t()
        assert close(layer(x), y, factor=64)
        layer.eval()
        assert close(layer(x), y, factor=64)

    def test_a_head_is_trained_with_the_factors(self, module):
        model = nn.Sequential(module().Linear(5, 4, r=2), nn.Linear(4, 2))
        module().mark_only_lora_as_trainable(model)
        model[1].requires_grad_(True)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(3, 5)).square().sum().backward()
            optimizer.step()
            model.eval()
            model.train()
        changed = {name for name, p in model.named_parameters() if not close(p, before[name], factor=64)}
        assert changed == {"0.lora_A", "0.lora_B", "1.weight", "1.bias"}
