"""The Triton kernels give the reference's numbers, their dropout masks agree, and they compile for GPUs.

What is called `check_` needs the kernels to run. Triton decides when it is imported whether it interprets, for the whole
process: so one pytest of its own runs the checks on the CPU with TRITON_INTERPRET=1, and here a test for each reports what
came out. On a machine with a GPU the same checks run on it:

    python -m pytest -o python_functions='check_*' tests/ops/test_triton_linear.py
"""

import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import loralib as lora
from loralib import ops
from loralib.ops import reference, triton_linear
from loralib.ops.triton_linear import draw_seed, expand_onto, gradient, lora_linear, shrink
from peers import library

DEVICE = "cuda" if torch.cuda.is_available() and not os.environ.get("TRITON_INTERPRET") else "cpu"
LOW = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *LOW]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def a_seed(number: int) -> Tensor:
    return torch.tensor(number, device=DEVICE)


def drawn(n: tuple[int, ...], d: int, k: int, r: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of a linear step."""
    shapes = {"x": (*n, d), "W": (k, d), "b": (k,), "A": (r, d), "B": (k, r)}
    return {name: randn(*shape).to(dtype) for name, shape in shapes.items()}


def step(operation, tensors: dict[str, Tensor | None], *args) -> list[Tensor]:
    """The output and the gradients of its weighted sum."""
    tensors = {name: None if t is None else t.detach().clone().requires_grad_() for name, t in tensors.items()}
    y = operation(*tensors.values(), *args)
    weights = torch.linspace(-1, 1, y.numel(), device=DEVICE).view(y.shape).to(y.dtype)
    (y * weights).sum().backward()
    return [y.detach(), *(t.grad for t in tensors.values() if t is not None)]


def as_good(computed: list[Tensor], plain: list[Tensor], exact: list[Tensor]) -> bool:
    """Whether each result is at most twice as far from the exact one as the plain formula's is, up to one rounding of a
    low precision, or some of a high one (in which both are nearly exact)."""
    low = any(t.dtype in LOW for t in plain)
    for mine, theirs, true in zip(computed, plain, exact, strict=True):
        rounding = max(torch.finfo(t.dtype).eps for t in plain) if low else 64 * torch.finfo(torch.float32).eps
        mine_off, theirs_off = (float((t.double() - true).abs().max()) for t in (mine, theirs))
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            return False
        if mine_off > 2 * theirs_off + rounding * float(1 + true.abs().max()):
            return False
    return True


def is_as_good_as_plain(tensors: dict[str, Tensor | None], plain=reference.lora_linear, p: float = 0.0) -> bool:
    """Whether the kernels' step is as good as the `plain` one, for a scaling of 0.7."""
    doubled = {name: None if t is None else t.double() for name, t in tensors.items()}
    return as_good(step(lora_linear, tensors, 0.7, p), step(plain, tensors, 0.7), step(plain, doubled, 0.7))


def kept(seed: Tensor, n: int, d: int, p: float) -> Tensor:
    """The mask (n, d) of this seed: 1 for what stays."""
    ones = torch.ones(n, d, device=DEVICE)
    return expand_onto(torch.empty_like(ones), ones[:, :1].contiguous(), ones[:1], p, seed, fresh=True).mul(1 - p).round()


def with_mask(mask: Tensor, p: float):
    """The plain formula for this mask."""

    def formula(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        return reference.add_linear_update(F.linear(x, W, b), x * (mask / (1 - p)).to(x.dtype), A, B, scaling)

    return formula


# --- the same numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [((), 1, 1, 1), ((1,), 123, 17, 3), ((3,), 17, 123, 16), ((2, 17), 3, 1, 5), ((40, 1), 130, 70, 1), ((5,), 70, 5, 70)],
)
def check_a_step_is_as_exact_as_the_plain_formula(shape, dtype):
    assert is_as_good_as_plain(drawn(*shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("programs", [1, 3, 1000])
def check_sums_that_are_split_are_as_exact(programs, dtype, monkeypatch):
    monkeypatch.setattr(triton_linear, "PROGRAMS", programs)
    assert is_as_good_as_plain(drawn((70,), 200, 17, 3, dtype))


@pytest.mark.parametrize("dtype", LOW)
def check_factors_of_higher_precision_get_gradients_of_theirs(dtype):
    tensors = drawn((17,), 123, 33, 3)
    low = {name: t.to(dtype) if name in "xWb" else t for name, t in tensors.items()}
    assert [t.dtype for t in step(lora_linear, low, 0.7)] == [dtype, dtype, dtype, dtype, torch.float32, torch.float32]
    assert is_as_good_as_plain(low)


def check_a_layer_without_bias():
    for dtype in DTYPES:
        assert is_as_good_as_plain(drawn((3,), 5, 4, 2, dtype) | {"b": None})


def check_no_tokens_give_no_output_and_no_gradient():
    for p in (0.0, 0.5):
        y, dX, dW, db, dA, dB = step(lora_linear, drawn((2, 0), 5, 4, 3), 0.7, p)
        assert y.shape == (2, 0, 4)
        assert dX.shape == (2, 0, 5)
        assert not any(t.any() for t in (dW, db, dA, dB))


def check_inputs_need_not_be_contiguous():
    _, W, b, A, B = drawn((1,), 8, 5, 3).values()
    strided_A, strided_B = A.t().contiguous().t(), B.repeat_interleave(2, 1)[:, ::2]
    for x in (randn(6, 16)[:, ::2], randn(8, 6).t(), randn(2, 8, 3).transpose(1, 2), randn(1, 8).expand(4, 8)):
        y = lora_linear(x, W, b, strided_A, strided_B, 0.7)
        assert torch.allclose(y, reference.lora_linear(x, W, b, A, B, 0.7), atol=1e-5)
    x = randn(6, 8).requires_grad_()
    lora_linear(x, W, b, A, B, 0.7).sum().backward()  # whose gradient is expanded from one number
    assert torch.allclose(x.grad, (W + 0.7 * B @ A).sum(0).expand(6, 8), atol=1e-5)


def check_an_expansion_is_added_in_place_to_any_matrix():
    t, A = randn(33, 3), randn(3, 70)
    for Y in (randn(33, 70), randn(70, 33).t(), randn(33, 140)[:, ::2]):
        before = Y.clone()
        assert expand_onto(Y, t, A) is Y
        assert torch.allclose(Y, before + t @ A, atol=1e-5)
        assert torch.allclose(expand_onto(Y, t, A, fresh=True), t @ A, atol=1e-5)


def check_two_runs_give_the_same_bits():
    tensors = drawn((70,), 66, 17, 3)
    torch.manual_seed(1)
    first = step(lora_linear, tensors, 0.7, 0.3)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, step(lora_linear, tensors, 0.7, 0.3), strict=True))


def check_autocast_computes_in_its_dtype():
    tensors = drawn((4,), 6, 5, 2)
    with torch.autocast(DEVICE, torch.bfloat16):
        mine, plain = step(lora_linear, tensors, 0.7), step(reference.lora_linear, tensors, 0.7)
    assert [t.dtype for t in mine] == [t.dtype for t in plain]
    exact = step(reference.lora_linear, {name: t.double() for name, t in tensors.items()}, 0.7)
    assert as_good(mine, plain, exact)


@pytest.mark.parametrize("dtype", LOW)
def check_the_whole_of_a_small_update_reaches_the_output_and_the_input_gradient(dtype):
    d, n, r, size = 128, 256, 8, 1e-3
    x, dY, A, B = randn(n, d).to(dtype), randn(n, d).to(dtype), randn(r, d), randn(d, r)
    W, b = (randn(d, d) / math.sqrt(d)).to(dtype), torch.ones(d, device=DEVICE).to(dtype)
    s = size * float(W.float().norm() / (B @ A).norm())
    x.requires_grad_()
    y = lora_linear(x, W, b, A, B, s)
    y.backward(dY)
    x, dX = x.detach(), x.grad
    pairs = [(y - F.linear(x, W, b), (x.float() @ (B @ A).t()) * s), (dX - dY @ W, (dY.float() @ (B @ A)) * s)]
    for off, update in pairs:
        slope = float((off.detach().float() * update).sum() / update.square().sum())
        assert abs(slope - 1) < (0.02 if dtype == torch.float16 else 0.15)


# --- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 1), (3, 17), (33, 123), (35, 66)])
def check_all_kernels_see_the_same_mask(sizes):
    (n, d), seed, p = sizes, a_seed(11), 0.4
    x, mask = randn(n, d), kept(seed, n, d, p)
    through_shrink = shrink(x, torch.eye(d, device=DEVICE), p, seed)
    through_gradient = gradient(torch.eye(n, device=DEVICE), x, torch.float32, p, seed)
    through_expand = expand_onto(torch.zeros_like(x), torch.eye(n, device=DEVICE), x, p, seed)
    for dropped in (through_shrink, through_gradient, through_expand):
        assert torch.allclose(dropped, x * mask / (1 - p), atol=1e-6)
        assert torch.equal(dropped != 0, mask != 0)


@pytest.mark.parametrize(("dtype", "p"), [(torch.float32, 0.2), *((dtype, 0.5) for dtype in DTYPES)])
def check_a_step_with_dropout_is_as_exact_as_the_plain_formula_with_its_mask(dtype, p, monkeypatch):
    monkeypatch.setattr(triton_linear, "draw_seed", lambda x, p: a_seed(5))
    tensors = drawn((2, 17), 69, 33, 3, dtype)
    mask = kept(a_seed(5), 34, 69, p).view(2, 17, 69)
    assert 0 < float(mask.mean()) < 1
    assert is_as_good_as_plain(tensors, with_mask(mask, p), p)
    other = kept(a_seed(6), 34, 69, p).view(2, 17, 69)
    assert not is_as_good_as_plain(tensors, with_mask(other, p), p)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def check_each_element_is_dropped_independently_with_the_same_probability(p):
    dropped = 1 - kept(a_seed(3), 200, 131, p).double()
    n = dropped.numel()
    assert abs(float(dropped.sum()) - n * p) < 5 * math.sqrt(n * p * (1 - p))
    for lane in range(4):  # of the four numbers that one step of the generator gives
        part = dropped[:, lane::4]
        assert abs(float(part.sum()) - part.numel() * p) < 5 * math.sqrt(part.numel() * p * (1 - p)) + 1
    neighbours = [dropped[:, lag:] * dropped[:, :-lag] for lag in (1, 2, 3, 4)] + [dropped[1:] * dropped[:-1]]
    for pairs in neighbours:
        assert abs(float(pairs.sum()) - pairs.numel() * p * p) < 6 * math.sqrt(pairs.numel() * p * p) + 1


def check_the_same_seed_gives_the_same_mask_and_another_another():
    p, numbers = 0.3, [1, 2, 2**32 + 1, 2**62]
    masks = [kept(a_seed(number), 50, 60, p) for number in numbers]
    assert all(torch.equal(mask, kept(a_seed(number), 50, 60, p)) for mask, number in zip(masks, numbers, strict=True))
    expected, spread = p * p + (1 - p) ** 2, 6 / math.sqrt(3000)
    for i, mask in enumerate(masks):
        assert all(abs(float((mask == other).double().mean()) - expected) < spread for other in masks[:i])


def check_torchs_generator_draws_the_seed():
    x, state = randn(2, 3), torch.get_rng_state()
    assert draw_seed(x, 0.0) is None
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    seeds = [int(draw_seed(x, 0.1)) for _ in range(20)]
    assert len(set(seeds)) == 20
    torch.manual_seed(4)
    assert seeds == [int(draw_seed(x, 0.1)) for _ in range(20)]


def check_a_checkpoint_computes_with_the_mask_of_the_first_time():
    tensors = drawn((5,), 33, 17, 3)
    torch.manual_seed(2)
    plain = step(lora_linear, tensors, 0.7, 0.3)
    torch.manual_seed(2)
    again = step(lambda *args: checkpoint(lora_linear, *args, use_reentrant=False), tensors, 0.7, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", ["x", "W", "b", "A", "B", "WbAB", "xWbA"])
def check_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen):
    tensors, gradients = drawn((3,), 5, 4, 2), []
    for operation in (lora_linear, reference.lora_linear):
        given = {name: t.detach().clone().requires_grad_(name not in frozen) for name, t in tensors.items()}
        operation(**given, scaling=0.7).square().sum().backward()
        gradients.append({name: t.grad for name, t in given.items()})
    mine, plain = gradients
    assert all((mine[name] is None) == (name in frozen) for name in mine)
    assert all(torch.allclose(mine[name], plain[name], atol=1e-4) for name in mine if name not in frozen)


def check_a_gradient_of_a_factor_is_laid_out_like_it():
    *_, dA, dB = step(lora_linear, drawn((40,), 70, 33, 3), 0.7)
    assert dA.is_contiguous()
    assert dB.is_contiguous()


@pytest.mark.parametrize(("p", "frozen"), [(0.0, "W"), (0.3, "W"), (0.0, "WA")])
def check_a_step_keeps_the_input_the_small_product_and_a_seed(p, frozen):
    tensors, total = drawn((10,), 40, 60, 3), {}
    x, *rest = (nn.Parameter(t, requires_grad=name not in frozen) for name, t in tensors.items())

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            total[tensor.dtype] = total.get(tensor.dtype, 0) + tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lora_linear(x * 1, *rest, 0.7, p)
    x_kept = 0 if "A" in frozen else 10 * 40
    assert total == {torch.float32: x_kept + 10 * 3} | ({torch.int64: 1} if p else {})


def check_an_output_may_be_modified_in_place():
    for dtype in (torch.float32, torch.bfloat16):
        tensors = drawn((2, 3), 9, 5, 2, dtype)
        y = triton_linear.lora_linear(*(t.requires_grad_() for t in tensors.values()), 0.7)
        y += 1
        torch.relu_(y).sum().backward()
        assert tensors["A"].grad is not None


def check_a_second_derivative_is_refused():
    tensors = {name: t.requires_grad_() for name, t in drawn((3,), 5, 4, 2).items()}
    y = lora_linear(**tensors, scaling=0.7)
    with pytest.raises(lora.LayerError, match=r'cannot be differentiated again.*use\("reference"\)'):
        torch.autograd.grad(y.sum(), tensors["x"], create_graph=True)


# --- these checks can fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["expand_onto", "shrink", "gradient"])
def check_a_wrong_kernel_is_seen(wrong, monkeypatch):
    right = getattr(triton_linear, wrong)
    monkeypatch.setattr(triton_linear, wrong, lambda *args, **options: right(*args, **options).mul_(1.1))
    for dtype in DTYPES:
        assert not is_as_good_as_plain(drawn((17,), 33, 20, 3, dtype))


# --- what came out of them ------------------------------------------------------------------------------------------

CHECKS = [name for name in list(globals()) if name.startswith("check_")]


def run_checks(file: Path, folder: Path) -> dict[str, str]:
    """Each check in `file`, run under the interpreter: its name, and how it failed or nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"} | {"TRITON_INTERPRET": "1"}
    options = ["-o", "python_functions=check_*", "-p", "no:cacheprovider", f"--junitxml={folder / 'report.xml'}"]
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # all passed, or some failed
    found: dict[str, str] = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        name = case.attrib["name"].partition("[")[0]
        found[name] = "\n".join([found.get(name, ""), *(f"{case.attrib['name']}: {outcome.text}" for outcome in case)]).strip()
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    library("triton")
    return run_checks(Path(__file__), tmp_path_factory.mktemp("checks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_under_the_interpreter(name, report):
    assert report[name] == ""


@pytest.mark.slow
def test_the_report_tells_what_failed(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(
        "import os, pytest\n"
        "@pytest.mark.parametrize('i', [0, 1])\n"
        "def check_one(i): assert i == 0, 'off by one'\n"
        "def check_two(): assert os.environ['TRITON_INTERPRET'] == '1'\n"
        "def check_three(): pytest.skip('not here')\n"
    )
    found = run_checks(file, tmp_path)
    assert found["check_one"].startswith("check_one[1]:")
    assert "off by one" in found["check_one"]
    assert found["check_two"] == ""
    assert "not here" in found["check_three"]


# --- GPUs -----------------------------------------------------------------------------------------------------------

COMPILE = """
import sys
from types import SimpleNamespace
import torch
from loralib.ops import triton_linear
assert "triton" not in sys.modules
import triton
from triton.backends.compiler import GPUTarget

compiled = []

class Compiling:
    def __init__(self, kernel):
        self.kernel = kernel
    def __getitem__(self, grid):
        return lambda *args, **options: compiled.append(self.kernel.warmup(*args, grid=grid, **options))

kernels = {name: Compiling(kernel) for name, kernel in triton_linear._jitted().items()}
triton_linear._jitted = lambda: kernels
for capability, dtype, p in ((80, torch.bfloat16, 0.1), (90, torch.float32, 0.0)):
    triton.runtime.driver.set_active(SimpleNamespace(
        get_current_device=lambda: capability,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
    ))
    x, A, seed = torch.ones(64, 128, dtype=dtype), torch.ones(40, 128), torch.tensor(1) if p else None
    t = triton_linear.shrink(x, A, p, seed)
    triton_linear.expand_onto(x, t, A, p, seed)
    triton_linear.gradient(t, x, A.dtype, p, seed)
    for kernel in compiled[-3:]:
        assert len(kernel.asm["cubin"]) > 1000 and f".target sm_{capability}" in kernel.asm["ptx"]
print(len(compiled))
"""


@pytest.mark.slow
def test_the_kernels_compile_for_gpus(tmp_path):
    library("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-W", "error", "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("6\n", "")


# --- where they cannot run ------------------------------------------------------------------------------------------


@pytest.fixture
def with_triton(monkeypatch):
    """Triton seems to be installed, and does not interpret."""
    monkeypatch.setattr(triton_linear, "find_spec", lambda name: object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_without_triton_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(triton_linear, "find_spec", lambda name: None)
    assert "pip install triton" in triton_linear.problem()
    with pytest.raises(lora.ConfigError, match="needs the package triton: pip install triton, or use 'autograd'"):
        lora_linear(**drawn((3,), 5, 4, 2), scaling=0.7)


def test_tensors_that_the_kernels_cannot_take_are_named(with_triton, monkeypatch):
    tensors = {name: t.cpu() for name, t in drawn((3,), 5, 4, 2).items()}
    assert triton_linear.problem() is None
    with pytest.raises(lora.ConfigError, match="need tensors on a CUDA device, not on cpu; move the model"):
        lora_linear(**tensors, scaling=0.7)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_linear.problem(*tensors.values(), None) is None
    with pytest.raises(lora.ConfigError, match=r"float32, bfloat16 and float16, not in torch\.float64"):
        lora_linear(**tensors | {"A": tensors["A"].double()}, scaling=0.7)
    with pytest.raises(lora.ConfigError, match="all tensors on one device, not on cpu, meta"):
        lora_linear(**tensors | {"A": tensors["A"].to("meta")}, scaling=0.7)


@pytest.mark.parametrize(("name", "shape"), [("x", (3, 6)), ("A", (2, 6)), ("A", (3, 5)), ("B", (5, 2)), ("B", (4, 3))])
def test_shapes_that_do_not_go_together_are_named(name, shape, with_triton, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tensors = {name: t.cpu() for name, t in drawn((3,), 5, 4, 2).items()} | {name: torch.zeros(shape)}
    with pytest.raises(lora.LayerError, match=rf"do not go together: .*{name} \({shape[0]}, {shape[1]}\)"):
        lora_linear(**tensors, scaling=0.7)


def test_a_mismatch_of_dtypes_is_refused_as_by_a_plain_layer(with_triton, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tensors = {name: t.cpu() for name, t in drawn((3,), 5, 4, 2).items()}
    with ops.use("triton"), pytest.raises(RuntimeError, match="dtype"):
        ops.lora_linear(**tensors | {"x": tensors["x"].bfloat16()}, scaling=0.7)
