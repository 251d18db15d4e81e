"""Every operation against float64 on the CPU, forward and gradients.

An error may be twice that of the plain formula in the same dtype on the same device, or a unit in the last place of the largest
element (64 of them in float32, where both are nearly exact, and one of tf32's where that is on). All memory that an operation
takes is full of NaN beforehand.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.setting import Row, Setting
from benchmarks.harness import by
from loralib import ops
from loralib.ops import reference

Tensors = dict[str, Tensor | None]
Operation = Callable[..., Tensor]

LOW = (torch.bfloat16, torch.float16)
DTYPES = {  # of the base, and of the factors
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "bfloat16, float32 factors": (torch.bfloat16, torch.float32),
    "float16": (torch.float16, torch.float16),
    "float16, float32 factors": (torch.float16, torch.float32),
}
TF32 = 2.0**-10
SCALING = 0.7
SHAPES = [((), 1, 1, 1), ((1,), 123, 17, 3), ((3,), 17, 123, 16), ((2, 17), 3, 1, 5), ((40, 1), 130, 70, 1), ((5,), 70, 5, 70)]
LARGE = ((2, 700), 1024, 1536, 16)


# --- what is compared ------------------------------------------------------------------------------------------------


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside the block, memory that has not been written is full of NaN."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operations that are not deterministic say so
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = before


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Inside the block, whether products of float32 are taken in tf32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = on
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def step(operation: Operation, tensors: Tensors) -> list[Tensor]:
    """The output and the gradients of its weighted sum. The strides of the tensors stay as they are."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in tensors.items()}
    y = operation(*leaves.values())
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.device, y.dtype)
    wanted = [t for t in leaves.values() if t is not None]
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), wanted)]


def compare(mine: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor], unit: float) -> Row:
    """The error that comes closest to what is allowed, or exceeds it by most. Results of another dtype or shape are wrong."""
    worst = (0.0, 0.0, 1.0)
    for computed, theirs, true in zip(mine, plain, exact, strict=True):
        if (computed.dtype, computed.shape) != (theirs.dtype, theirs.shape):
            return {"error": math.inf, "allowed": 0.0, "passed": False}
        if not true.numel():
            continue
        error, other = (float((t.double().cpu() - true).abs().max()) for t in (computed, theirs))
        allowed = 2 * other + unit * (1 + float(true.abs().max()))
        worst = max(worst, (math.inf if math.isnan(error) else error / allowed, error, allowed))
    return {"error": worst[1], "allowed": worst[2], "passed": worst[0] <= 1}


def unit_of(tensors: Tensors, reduced: bool = False) -> float:
    """The error that is one rounding. reduced: float32 is multiplied in tf32."""
    kinds = {t.dtype for t in tensors.values() if t is not None}
    if low := kinds & {*LOW}:
        return max(torch.finfo(kind).eps for kind in low)
    return TF32 if reduced else 64 * torch.finfo(torch.float32).eps


def on_cpu(tensors: Tensors) -> Tensors:
    """The same in float64 on the CPU."""
    return {name: None if t is None else t.detach().cpu().double() for name, t in tensors.items()}


def checked(mine: Operation, plain: Operation, tensors: Tensors, reduced: bool = False) -> Row:
    """How `mine` compares."""
    with poisoned():
        computed = step(mine, tensors)
    return compare(computed, step(plain, tensors), step(plain, on_cpu(tensors)), unit_of(tensors, reduced))


# --- linear layers ---------------------------------------------------------------------------------------------------


def drawn(setting: Setting, n: tuple[int, ...], d: int, k: int, r: int, dtypes: tuple[torch.dtype, torch.dtype]) -> Tensors:
    """Tensors of a linear step."""
    base, factors = dtypes
    shapes = {"x": (*n, d), "W": (k, d), "b": (k,), "A": (r, d), "B": (k, r)}
    sized = {"W": d**-0.5, "A": d**-0.5}
    return {
        name: (torch.randn(shape, device=setting.device) * sized.get(name, 1)).to(factors if name in "AB" else base)
        for name, shape in shapes.items()
    }


def known(tensors: Tensors, name: str) -> Tensor:
    """One of the tensors, which is there."""
    tensor = tensors[name]
    assert tensor is not None
    return tensor


def strange(tensors: Tensors) -> Iterator[tuple[str, Tensors]]:
    """The same step of tensors that are not contiguous."""
    x, W, A, B = (known(tensors, name) for name in "xWAB")
    yield "every second column", tensors | {"x": x.repeat_interleave(2, -1)[..., ::2]}
    yield "transposed", tensors | {"x": x.mT.contiguous().mT, "W": W.t().contiguous().t(), "A": A.t().contiguous().t()}
    yield "B cut out of more", tensors | {"B": B.repeat_interleave(2, 1)[:, ::2]}
    yield "one row for all", tensors | {"x": x[..., :1, :].expand(x.shape)}
    yield "no bias", tensors | {"b": None}


def linear(setting: Setting) -> Iterator[Row]:
    """Linear layers: dtypes, odd shapes, strides, tf32."""
    ours, plain = partial(_scaled, ops.lora_linear), partial(_scaled, reference.lora_linear)
    shapes = SHAPES if setting.tiny else [*SHAPES, LARGE]
    for implementation in setting.implementations:
        mine = by(implementation, ours)
        for label, dtypes in DTYPES.items():
            for n, d, k, r in shapes:
                row = checked(mine, plain, drawn(setting, n, d, k, r, dtypes))
                yield {"case": f"{implementation}, {label}, {n} x ({d}→{k}), r {r}", **row}
            for how, tensors in strange(drawn(setting, (3, 40), 72, 33, 5, dtypes)):
                yield {"case": f"{implementation}, {label}, {how}", **checked(mine, plain, tensors)}
        for on in (False, True) if setting.cuda else ():
            with tf32(on):
                row = checked(mine, plain, drawn(setting, *LARGE, DTYPES["float32"]), reduced=on)
            yield {"case": f"{implementation}, float32, tf32 {'on' if on else 'off'}", **row}


def _scaled(operation: Operation, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
    return operation(x, W, b, A, B, SCALING)


def mask_of(implementation: str, x: Tensor, p: float, seed: int) -> Tensor:
    """What the dropout of a linear step keeps of an input like `x` after `seed`: 1 where it is kept. The product with the unit
    matrix shows it."""
    eye = torch.eye(x.shape[-1], device=x.device, dtype=x.dtype)
    torch.manual_seed(seed)
    with ops.use(implementation), torch.no_grad():
        kept = ops.lora_linear(torch.ones_like(x), torch.zeros_like(eye), None, eye, eye, 1 - p, p)
    return kept.float().round()


def dropped(setting: Setting) -> Iterator[Row]:
    """Linear layers with dropout: the mask of the forward pass is that of the gradients."""
    for implementation in setting.implementations:
        for label, dtypes in DTYPES.items():
            for p in (0.1, 0.6):
                tensors = drawn(setting, (90,), 60, 33, 5, dtypes)
                mask = mask_of(implementation, known(tensors, "x"), p, 3)

                def mine(*given: Tensor, p: float = p, by_whom: str = implementation) -> Tensor:
                    torch.manual_seed(3)
                    with ops.use(by_whom):
                        return ops.lora_linear(*given, SCALING, p)

                def plain(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor, p: float = p, mask: Tensor = mask) -> Tensor:
                    kept = x * (mask.to(x.device) / (1 - p)).to(x.dtype)
                    return reference.add_linear_update(F.linear(x, W, b), kept, A, B, SCALING)

                yield {"case": f"{implementation}, {label}, p {p}", **checked(mine, plain, tensors)}


def dropout(setting: Setting) -> Iterator[Row]:
    """The distribution of the dropout: share, neighbours, draws. error: in standard deviations, of which five are allowed."""
    n, d, p = (64, 64, 0.1) if setting.tiny else (1 << 14, 256, 0.1)
    for implementation in setting.implementations:
        x = torch.ones(n, d, device=setting.device)
        first, second = (1 - mask_of(implementation, x, p, seed) for seed in (1, 2))
        spread = math.sqrt(p * (1 - p))
        standard = (first - p) / spread
        pairs = {
            "share of elements": standard,
            "neighbours in a row": standard[:, 1:] * standard[:, :-1],
            "neighbours in a column": standard[1:] * standard[:-1],
            "every fourth in a row": standard[:, 4:] * standard[:, :-4],
            "two draws": standard * (second - p) / spread,
        }
        for label, values in pairs.items():
            sigmas = abs(float(values.double().sum())) / math.sqrt(values.numel())
            yield {"case": f"{implementation}, {label}", "error": sigmas, "allowed": 5.0, "passed": sigmas <= 5}


# --- the other operations --------------------------------------------------------------------------------------------

SLICES = [((4, 4, 4), (True, False, True)), ((8, 2, 2), (False, True, True)), ((5, 1), (True, True)), ((64, 9), (False, True))]


def slices(setting: Setting) -> Iterator[Row]:
    """Fused projections by slices, and updates of an output that something else computed."""
    for label, (base, factors) in DTYPES.items():
        for widths, enabled in SLICES:
            of = ops.Slices(widths, enabled)
            n, r, k = sum(enabled), 3, sum(widths)
            shapes = {"x": (3, 5, 24), "W": (k, 24), "b": (k,), "A": (n * r, 24), "B": (sum(of.chosen), r)}
            tensors = {
                name: torch.randn(shape, device=setting.device).to(factors if name in "AB" else base)
                for name, shape in shapes.items()
            }
            mine, plain = (partial(_sliced, operation, of) for operation in (ops.lora_linear, reference.lora_linear))
            yield {"case": f"{label}, slices {widths}", **checked(mine, plain, tensors)}
        update = {
            "y": torch.randn(3, 5, 33, device=setting.device).to(base),
            **drawn(setting, (3, 5), 24, 33, 4, (base, factors)),
        }
        tensors = {name: update[name] for name in ("y", "x", "A", "B")}
        mine, plain = (partial(_added, operation) for operation in (ops.add_linear_update, reference.add_linear_update))
        yield {"case": f"{label}, update of an output", **checked(mine, plain, tensors)}


def _sliced(operation: Operation, of: ops.Slices, x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return operation(x, W, b, A, B, SCALING, 0.0, of)


def _added(operation: Operation, y: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return operation(y * 1, x, A, B, SCALING)


def embedding(setting: Setting) -> Iterator[Row]:
    """Embeddings: tokens that repeat, updates that are left out, gradients by frequency."""
    ids = torch.randint(50, (7, 30), device=setting.device)
    keep = (torch.rand(7, 30, device=setting.device) > 0.2).float()
    for label, (base, factors) in DTYPES.items():
        shapes = {"y": (7, 30, 20), "A": (4, 50), "B": (20, 4)}
        tensors = {
            name: torch.randn(shape, device=setting.device).to(base if name == "y" else factors)
            for name, shape in shapes.items()
        }
        for how, kept, by_frequency in (("all", None, False), ("some left out", keep, False), ("by frequency", None, True)):
            mine, plain = (
                partial(_embedded, operation, ids, kept, by_frequency)
                for operation in (ops.add_embedding_update, reference.add_embedding_update)
            )
            yield {"case": f"{label}, {how}", **checked(mine, plain, tensors)}


def _embedded(
    operation: Operation, ids: Tensor, keep: Tensor | None, by_frequency: bool, y: Tensor, A: Tensor, B: Tensor
) -> Tensor:
    kept = None if keep is None else keep.to(y.device)
    return operation(y * 1, ids.to(y.device), A, B, SCALING, kept, by_frequency)


G = ops.Geometry
CONVOLUTIONS = {  # the geometry, shapes of x and W, and the rank
    "1-D, stride 2": (G((2,), (1,), (1,), False, (0,), 1), (3, 6, 17), (10, 6, 3), 2),
    "2-D": (G((1, 1), (1, 1), (1, 1), False, (0, 0), 1), (2, 6, 9, 11), (10, 6, 3, 3), 3),
    "2-D, dilated, two groups": (G((1, 2), (2, 0), (2, 1), False, (0, 0), 2), (2, 6, 9, 11), (10, 3, 3, 2), 2),
    "3-D": (G((1, 1, 2), (0, 1, 0), (1, 1, 1), False, (0, 0, 0), 1), (2, 4, 5, 6, 7), (6, 4, 2, 3, 2), 2),
    "2-D, transposed": (G((2, 2), (1, 0), (1, 1), True, (1, 0), 1), (2, 6, 5, 7), (6, 10, 3, 3), 2),
    "2-D, transposed, two groups": (G((2, 1), (0, 1), (1, 1), True, (0, 0), 2), (2, 6, 5, 7), (6, 5, 3, 3), 2),
}


def convolution(setting: Setting) -> Iterator[Row]:
    """Convolutions of all kinds, channels last included."""
    for label, (base, factors) in DTYPES.items():
        for how, (geometry, of_x, of_W, r) in CONVOLUTIONS.items():
            k = of_W[1] * geometry.groups if geometry.transposed else of_W[0]
            of_A = (of_W[0], r, *of_W[2:]) if geometry.transposed else (geometry.groups * r, *of_W[1:])
            shapes = {"x": of_x, "W": of_W, "b": (k,), "A": of_A, "B": (k, r, *[1] * len(of_W[2:]))}
            tensors: Tensors = {
                name: torch.randn(shape, device=setting.device).to(factors if name in "AB" else base)
                for name, shape in shapes.items()
            }
            mine, plain = (
                partial(_convolved, operation, geometry) for operation in (ops.lora_convolution, reference.lora_convolution)
            )
            with tf32(False):
                yield {"case": f"{label}, {how}", **checked(mine, plain, tensors)}
                if len(of_x) == 4:
                    last = tensors | {"x": known(tensors, "x").to(memory_format=torch.channels_last)}
                    yield {"case": f"{label}, {how}, channels last", **checked(mine, plain, last)}


def _convolved(operation: Operation, geometry: ops.Geometry, x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return operation(x, W, b, A, B, SCALING, geometry)


def strips(setting: Setting) -> Iterator[Row]:
    """Products added to a weight, as merging adds them."""
    for label, (base, factors) in DTYPES.items():
        tensors = drawn(setting, (), 300, 200, 8, (base, factors))
        named: Tensors = {name: tensors[name] for name in "WAB"}

        def added(operation: Operation, W: Tensor, A: Tensor, B: Tensor) -> Tensor:
            return operation(W, [ops.Strip(0, 0, B[:90], A), ops.Strip(110, 20, B[110:], A[:, 20:])], SCALING)

        with poisoned(), torch.no_grad():  # as merging does, by blocks
            computed = added(ops.add_strips, *(t.detach() for t in named.values() if t is not None))
        plain, exact = (
            added(reference.add_strips, *(t.detach() for t in of.values() if t is not None)) for of in (named, on_cpu(named))
        )
        yield {"case": label, **compare([computed], [plain], [exact], unit_of({"W": named["W"]}))}


CHECKS = {
    "linear": linear,
    "linear, dropped": dropped,
    "slices and updates": slices,
    "embedding": embedding,
    "convolution": convolution,
    "adding to a weight": strips,
    "dropout": dropout,
}
