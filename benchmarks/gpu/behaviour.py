"""What training and serving do with layers on a device: merging, graphs, checkpointing, compiling, moving, great sizes."""

import copy
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

import loralib as lora
from benchmarks.gpu.exactness import TF32, compare, mask_of, poisoned, tf32
from benchmarks.gpu.setting import NotHereError, Row, Setting
from benchmarks.harness import by
from loralib import ops
from loralib.ops import reference

try:
    from accelerate import dispatch_model
except ImportError:  # which some machines lack
    dispatch_model = None

R, ALPHA, P = 4, 8, 0.1


# --- models ----------------------------------------------------------------------------------------------------------


def adapted(model: nn.Module, dropout: float = 0.0, dtype: torch.dtype | None = None, **config: Any) -> Any:
    """The model with an update of random factors on every layer that can have one, in training mode."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d)]
    given = {"r": R, "lora_alpha": ALPHA, "lora_dropout": dropout, "target_modules": names} | config
    lora.inject(model, lora.LoRAConfig(**given), dtype)
    lora.mark_only_lora_as_trainable(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    return model.train()


def layers(device: str, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> dict[str, tuple[Any, Tensor]]:
    """One adapted layer of each kind, as a model, and an input for it."""
    d, k = 48, 96
    made: dict[str, tuple[nn.Module, Tensor]] = {
        "linear": (nn.Linear(d, k), torch.randn(64, d)),
        "fused linear": (nn.Linear(d, k), torch.randn(64, d)),
        "embedding": (nn.Embedding(50, d), torch.randint(50, (8, 9))),
        "convolution": (nn.Conv2d(6, 8, 3), torch.randn(4, 6, 12, 12)),
    }
    fused = {"fused linear": {"enable_lora": [True, False, True]}}
    return {
        kind: (
            adapted(nn.Sequential(layer.to(device, dtype)), dropout, **fused.get(kind, {})),
            x.to(device, dtype if x.is_floating_point() else None),
        )
        for kind, (layer, x) in made.items()
    }


def small_llama(setting: Setting, dropout: float = 0.0) -> Any:
    """A language model of two blocks with updates on all linear layers."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return adapted(LlamaForCausalLM(config).to(setting.device), dropout, target_modules="all-linear")


def trained(model: nn.Module) -> list[Tensor]:
    """The parameters with gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(model: nn.Module, compute: Callable[[], Tensor]) -> list[Tensor]:
    """The output of `compute` and the gradients of its weighted sum."""
    y = compute()
    weights = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), trained(model))]


def close(mine: list[Tensor], expected: list[Tensor], allowed: float) -> Row:
    """The largest difference, over the largest element. allowed: 0 for the same bits."""
    error = 0.0
    for found, wanted in zip(mine, expected, strict=True):
        found_64, wanted_64 = found.detach().double(), wanted.detach().double()
        off = float((found_64 - wanted_64).abs().max() / (1e-30 + wanted_64.abs().max()))
        error = max(error, math.inf if math.isnan(off) else off)
    return {"error": error, "allowed": allowed, "passed": error <= allowed}


def said(case: str, right: bool, note: str = "") -> Row:
    """A row of what is either so or not."""
    return {"case": case, "passed": right, "note": "" if right else note}


# --- merging ---------------------------------------------------------------------------------------------------------


def merging(setting: Setting) -> Iterator[Row]:
    """Merged weights are W + ΔW, and unmerging gives every bit back, also after a move to the CPU and back."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for kind, (model, _) in layers(setting.device, dtype).items():
            label = f"{kind}, {str(dtype).removeprefix('torch.')}"
            weight = model[0].weight
            before, delta = weight.detach().clone(), lora.extract(model).delta("0").cpu().double()
            with tf32(False), poisoned():
                lora.merge(model)
            exact = before.cpu().double() + delta
            merged = model[0].weight.detach().cpu().double()
            yield {"case": f"{label}, merged", **close([merged], [exact], 2 * torch.finfo(dtype).eps)}
            model.cpu().to(setting.device)
            lora.unmerge(model)
            same = torch.equal(model[0].weight, before)
            yield said(f"{label}, unmerged", same, "the weight has other bits")


# --- the host does not wait -------------------------------------------------------------------------------------------


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside the block, waiting for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def what_waits(step: Callable[[], object]) -> str:
    """What torch says of a step that waits, after one that may; nothing where none does."""
    step()
    torch.cuda.synchronize()
    try:
        with no_waiting():
            step()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


def waiting(setting: Setting) -> Iterator[Row]:
    """A step makes the host wait for nothing."""
    setting.need_cuda()
    for implementation in setting.implementations:
        models: dict[str, tuple[Any, Tensor]] = layers(setting.device, dropout=P)
        models["language model"] = small_llama(setting, P), torch.randint(64, (2, 16), device=setting.device)
        for kind, (model, x) in models.items():

            def step(model: Any = model, x: Tensor = x, by_whom: str = implementation) -> None:
                with ops.use(by_whom):
                    y = model(x)
                    (y if isinstance(y, Tensor) else y.logits).sum().backward()

            found = what_waits(step)
            if found and kind == "language model":
                with lora.disabled(model), torch.no_grad():
                    if what_waits(lambda model=model, x=x: model(x)):
                        yield {"case": kind, "passed": None, "note": f"transformers' own model waits: {found}"}
                        continue
            yield said(f"{kind}, {implementation}", not found, found)


def captured(step: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
    """`step` as a CUDA graph: what replays it, and where its results are then."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph.replay, results


def graphs(setting: Setting) -> Iterator[Row]:
    """A captured step computes what one that is not captured does, of the input that is there, and each replay draws anew."""
    setting.need_cuda()
    for implementation in setting.implementations:
        for kind, (model, x) in layers(setting.device).items():

            def step(model: Any = model, x: Tensor = x, by_whom: str = implementation) -> list[Tensor]:
                with ops.use(by_whom):
                    return gradients(model, lambda: model(x))

            replay, results = captured(step)
            x.copy_(x.roll(1, 0))
            replay()
            yield {"case": f"{kind}, {implementation}", **close(results, step(), 1e-5)}
        model, x = layers(setting.device, dropout=P)["linear"]

        def dropping(model: Any = model, x: Tensor = x, by_whom: str = implementation) -> list[Tensor]:
            with ops.use(by_whom):
                return gradients(model, lambda: model(x))

        replay, results = captured(dropping)
        drawn = []
        for _ in range(3):
            replay()
            drawn.append(results[0].clone())
        fresh = not any(torch.equal(one, other) for one, other in ((drawn[0], drawn[1]), (drawn[1], drawn[2])))
        yield said(f"fresh dropout, {implementation}", fresh, "two replays drew the same")
        llama, ids = small_llama(setting), torch.randint(64, (2, 16), device=setting.device)

        def whole(llama: Any = llama, ids: Tensor = ids, by_whom: str = implementation) -> list[Tensor]:
            with ops.use(by_whom):
                return gradients(llama, lambda: llama(ids, use_cache=False).logits)

        replay, results = captured(whole)
        ids.copy_(ids.roll(1, 1))
        replay()
        yield {"case": f"language model, {implementation}", **close(results, whole(), 1e-4)}


# --- checkpointing, autocast, compilers ------------------------------------------------------------------------------


def checkpointing(setting: Setting) -> Iterator[Row]:
    """Computing again in the backward pass, by both ways, drops the same elements: the same bits."""
    for implementation in setting.implementations:
        for kind, (model, x) in layers(setting.device, dropout=P).items():
            x_leaf = x.clone().requires_grad_(x.is_floating_point())

            def of(compute: Callable[[], Tensor], model: Any = model, by_whom: str = implementation) -> list[Tensor]:
                torch.manual_seed(5)
                with ops.use(by_whom):
                    return gradients(model, compute)

            plain = of(lambda model=model, x=x_leaf: model(x))
            for reentrant in (False, True):
                if reentrant and not x.is_floating_point():
                    continue

                def again(model: Any = model, x: Tensor = x_leaf, reentrant: bool = reentrant) -> Tensor:
                    y: Tensor = checkpoint(model, x, use_reentrant=reentrant)
                    return y

                found = by_backward(model, again, implementation) if reentrant else of(again)
                label = "reentrant" if reentrant else "not reentrant"
                yield {"case": f"{kind}, {implementation}, {label}", **close(found, plain, 1e-6)}


def by_backward(model: Any, compute: Callable[[], Tensor], implementation: str) -> list[Tensor]:
    """As `gradients`, by `backward`, which is the only way through a reentrant checkpoint."""
    torch.manual_seed(5)
    with ops.use(implementation):
        y = compute()
        weights = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype)
        (y * weights).sum().backward()
    found = [y.detach(), *(parameter.grad.clone() for parameter in trained(model) if parameter.grad is not None)]
    model.zero_grad()
    return found


def autocast(setting: Setting) -> Iterator[Row]:
    """Under autocast a layer computes in its dtype, as well as the plain formula does."""
    kinds = (torch.bfloat16, torch.float16) if setting.cuda else (torch.bfloat16,)
    for implementation in setting.implementations:
        for dtype in kinds:
            for kind in ("linear", "fused linear", "convolution"):
                model, x = layers(setting.device)[kind]

                def of(by_whom: str, model: Any = model, x: Tensor = x, dtype: torch.dtype = dtype) -> list[Tensor]:
                    with torch.autocast(setting.device, dtype), ops.use(by_whom):
                        return gradients(model, lambda: model(x))

                exact = copy.deepcopy(model).cpu().double()
                with ops.use("reference"):
                    true = gradients(exact, lambda exact=exact, x=x: exact(x.cpu().double()))
                label = f"{kind}, {implementation}, {str(dtype).removeprefix('torch.')}"
                yield {"case": label, **compare(of(implementation), of("reference"), true, torch.finfo(dtype).eps)}


def has_compiler() -> bool:
    """Whether inductor finds the C++ compiler that it needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compiled(setting: Setting) -> Iterator[Row]:
    """torch.compile(fullgraph=True) agrees with the eager model, and drops as much."""
    if not setting.cuda and not has_compiler():
        raise NotHereError("needs a C++ compiler")
    kinds = ("linear",) if setting.tiny else ("linear", "fused linear", "embedding", "convolution")
    for kind in kinds:
        model, x = layers(setting.device)[kind]
        with tf32(False):
            eager = gradients(model, lambda model=model, x=x: model(x))
            fast = torch.compile(copy.deepcopy(model), fullgraph=True)
            yield {"case": kind, **close(gradients(fast, lambda fast=fast, x=x: fast(x)), eager, 1e-4)}
    if setting.tiny:
        return
    model, x = layers(setting.device, dropout=0.5)["linear"]
    fast = torch.compile(model, fullgraph=True)
    drawn = [gradients(fast, lambda: fast(x))[0] for _ in range(2)]
    yield said("fresh dropout", not torch.equal(*drawn), "two calls drew the same")
    llama, ids = small_llama(setting), torch.randint(64, (2, 16), device=setting.device)
    eager = gradients(llama, lambda: llama(ids, use_cache=False).logits)
    fast = torch.compile(copy.deepcopy(llama), fullgraph=True)
    found = gradients(fast, lambda: fast(ids, use_cache=False).logits)
    yield {"case": "language model", **close(found, eager, 1e-3)}


# --- moving ----------------------------------------------------------------------------------------------------------


def moving(setting: Setting) -> Iterator[Row]:
    """An adapter goes from one device to another, from pinned memory, and onto a model on two devices."""
    model, x = layers(setting.device)["linear"]
    adapter, y = lora.extract(model), model(x).detach()
    other = nn.Sequential(nn.Linear(48, 96))
    other.load_state_dict({name: model.state_dict()[name].cpu() for name in ("0.weight", "0.bias")})
    lora.attach(other, adapter)
    yield {"case": "attached on the CPU", **close([other(x.cpu())], [y.cpu()], TF32 if setting.cuda else 1e-5)}
    other.to(setting.device)
    yield {"case": "moved with the model", **close([other(x).detach()], [y], 1e-6)}
    here = adapter.to(device="cpu").to(device=setting.device)
    yield said("there and back", here == adapter, "the adapter has other values")
    if not setting.cuda:
        return
    pinned = adapter.to(device="cpu")
    for update in pinned.layers.values():
        assert isinstance(update, lora.LoRAUpdate)
        update.A.data, update.B.data = update.A.pin_memory(), update.B.pin_memory()
    lora.eject(other)
    lora.attach(other, pinned)
    yield {"case": "attached from pinned memory", **close([other(x).detach()], [y], 1e-6)}
    if torch.cuda.device_count() < 2 or dispatch_model is None:
        yield {"case": "two devices", "passed": None, "note": "needs two GPUs and accelerate"}
        return
    whole = adapted(nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 96)))
    expected = whole(x.cpu()).detach()
    split = dispatch_model(whole, {"0": 0, "1": 1}, main_device=0)
    yield {"case": "two devices", **close([split(x.to("cuda:0")).detach().cpu()], [expected], TF32)}


# --- great sizes -----------------------------------------------------------------------------------------------------

GREAT = (1 << 31) + (1 << 20)  # elements, more than 32 bits can count with a sign


def great(setting: Setting) -> Iterator[Row]:
    """Inputs and outputs of more than 2³¹ elements, checked on rows from all over, and the gradient of a factor."""
    setting.need_cuda()
    for label, d, k in (("input", 4096, 64), ("output", 64, 4096)):
        setting.need(40)
        n = GREAT // 4096
        rows = torch.tensor([0, 1, n // 3, n // 2, n - 2, n - 1], device=setting.device)
        shapes = {"x": (n, d), "W": (k, d), "A": (8, d), "B": (k, 8)}
        x, W, A, B = (torch.randn(s, device=setting.device, dtype=torch.bfloat16) for s in shapes.values())
        A.requires_grad_()
        for implementation in setting.implementations:
            for p in (0.0, P):
                mine = by(implementation, partial(ops.lora_linear, W=W, b=None, A=A, B=B, scaling=0.5, p=p))
                leaf = x.detach().requires_grad_()
                y = mine(leaf)
                dX, dA = torch.autograd.grad(y, (leaf, A), torch.ones_like(y))
                found = [y[rows].detach(), dX[rows], dA]
                del y, dX, leaf
                case = f"{label}, {implementation}, dropout {p}"
                if p:  # which elements of these rows are kept, only the whole mask would tell
                    yield said(case, all(bool(t.isfinite().all()) for t in found), "not finite")
                else:
                    yield {"case": case, **close(found, by_parts(x, W, A, B, rows), 2**-6)}
        del x
    setting.need(45)
    n, d = GREAT // 256, 256
    for implementation in setting.implementations:
        mask = mask_of(implementation, torch.empty(n, d, device=setting.device, dtype=torch.bfloat16), P, 1)
        share = 1 - float(mask[-(1 << 16) :].mean(dtype=torch.float64))
        sigmas = abs(share - P) / math.sqrt(P * (1 - P) / (d << 16))
        yield {"case": f"dropout's last rows, {implementation}", "error": sigmas, "allowed": 5.0, "passed": sigmas <= 5}


def by_parts(x: Tensor, W: Tensor, A: Tensor, B: Tensor, rows: Tensor) -> list[Tensor]:
    """The output and the gradient of some rows, and the gradient of A for ones, all in float32, by the plain formula."""
    W, A, B = (tensor.detach().float() for tensor in (W, A, B))
    some, A = x[rows].float().requires_grad_(), A.requires_grad_()
    y = reference.lora_linear(some, W, None, A, B, 0.5)
    (dX,) = torch.autograd.grad(y, some, torch.ones_like(y))
    dA = torch.zeros_like(A)
    for part in x.split(1 << 16):
        u = 0.5 * torch.ones(len(part), len(W), device=x.device) @ B
        dA += u.t() @ part.float()
    return [y.detach(), dX, dA.detach()]


CHECKS = {
    "merging": merging,
    "waiting for the device": waiting,
    "checkpointing": checkpointing,
    "autocast": autocast,
    "moving": moving,
    "compiled": compiled,
    "CUDA graphs": graphs,
    "more than 2**31 elements": great,
}
