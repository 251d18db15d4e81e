"""One layer of every kind that can carry an update, and what it must compute: the base operation in float64 with ΔW, whose
formula is written out here for each kind of update, in its weight."""

import copy
import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import loralib as lora
from peers import library

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Holder(nn.Module):
    """A model of one layer, called `layer`. Of several outputs it gives the first."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = self.layer(*args, **kwargs)
        return y[0] if isinstance(y, tuple) else y


def fill(model: nn.Module) -> nn.Module:
    """Give all factors random values, such that updates are about as large as what they are added to."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_A"):
                p.copy_(torch.randn(p.shape) / max(1, p[0].numel() if p.dim() > 2 else p.shape[1]) ** 0.5)
            elif name.endswith("lora_B"):
                p.copy_(torch.randn(p.shape) / p.shape[1] ** 0.5)
    return model


def adapted(layer: nn.Module, dtype: torch.dtype | None = None, **config: Any) -> tuple[nn.Module, nn.Module]:
    """`layer` in a model, as it is and as it is with updates of random factors on it."""
    model = Holder(layer)
    plain = copy.deepcopy(model)
    lora.inject(model, lora.LoRAConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["layer"]} | config), dtype=dtype)
    return plain, fill(model)


# --- what must come out ---------------------------------------------------------------------------------------------


def delta(layer: nn.Module, update: lora.LoRAUpdate, A: Tensor, B: Tensor) -> Tensor:
    """ΔW in the layout of the weight of `layer`, for other values of the factors of `update`."""
    s = update.scaling
    if isinstance(update, lora.FusedUpdate):
        rows, r, a, b = [], B.shape[1], 0, 0
        for width, on in zip(update.widths, update.enable_lora, strict=True):
            rows.append(s * B[b : b + width] @ A[a : a + r] if on else A.new_zeros(width, A.shape[1]))
            a, b = a + r * on, b + width * on
        dense = torch.cat(rows)
        return dense if isinstance(layer, nn.Linear) else dense.t()
    if isinstance(update, lora.EmbeddingUpdate):
        dense = s * (B @ A).t()
        keep = torch.ones(len(dense), 1, dtype=A.dtype)
        if layer.padding_idx is not None:
            keep[layer.padding_idx] = 0
        return dense * keep
    if isinstance(update, lora.LegacyConvolutionUpdate):
        return s * (B @ A).reshape(layer.weight.shape)
    if isinstance(update, lora.ConvolutionUpdate):
        dense = s * torch.einsum("kr,r...->k...", B.flatten(1), A)  # (k, d/g, *kernel)
        if not layer.transposed:
            return dense
        k, g = layer.out_channels, layer.groups
        return torch.cat([dense[i * k // g : (i + 1) * k // g].transpose(0, 1) for i in range(g)])
    if isinstance(layer, nn.Bilinear):
        return s * torch.einsum("kr,rij->kij", B, A)
    return s * B @ A if isinstance(layer, nn.Linear | nn.MultiheadAttention) else (s * B @ A).t()


def effective(plain: nn.Module, updates: Mapping[str, lora.LoRAUpdate], factors: Mapping[str, Any] | None = None) -> dict:
    """The parameters of `plain` in float64, with the updates in them. factors: by layer, other values of A and B."""
    tensors = {name: p.detach().double() for name, p in plain.named_parameters()}
    for name, update in updates.items():
        A, B = factors[name] if factors else (update.A.double(), update.B.double())
        owner, _, leaf = name.rpartition(".")
        attention = plain.get_submodule(owner)
        if leaf not in PROJECTIONS or not isinstance(attention, nn.MultiheadAttention):
            layer = plain.get_submodule(name)
            tensors[name + ".weight"] = tensors[name + ".weight"] + delta(layer, update, A, B)
        elif attention._qkv_same_embed_dim:
            rows = [torch.zeros(len(B), A.shape[1], dtype=torch.float64) for _ in PROJECTIONS]
            rows[PROJECTIONS.index(leaf)] = delta(attention, update, A, B)
            tensors[f"{owner}.in_proj_weight"] = tensors[f"{owner}.in_proj_weight"] + torch.cat(rows)
        else:
            tensors[f"{owner}.{leaf}_weight"] = tensors[f"{owner}.{leaf}_weight"] + delta(attention, update, A, B)
    return tensors


def widened(values: Any) -> Any:
    """All floating-point tensors among the arguments of a call, in float64."""
    if isinstance(values, tuple | list):
        return type(values)(widened(value) for value in values)
    if isinstance(values, dict):
        return {key: widened(value) for key, value in values.items()}
    return values.double() if isinstance(values, Tensor) and values.is_floating_point() else values


def expected(plain: nn.Module, model: nn.Module, args: Iterable[Any], factors: Any = None, **kwargs: Any) -> Any:
    """What `model`, which is `plain` with updates, must compute: torch's own layer in float64 with W + ΔW."""
    tensors = effective(plain, lora.extract(model).layers, factors)
    exact = copy.deepcopy(plain).double().train()
    return functional_call(exact, tensors, widened(tuple(args)), widened(kwargs))


def agrees(y: Tensor, reference: Tensor, dtype: torch.dtype, terms: int = 1) -> bool:
    """Whether `y`, computed in `dtype` with sums of so many `terms`, is `reference` up to rounding."""
    y, reference = y.detach().double(), reference.detach()
    if y.shape != reference.shape or not y.numel():
        return y.shape == reference.shape
    tolerance = 16 * torch.finfo(dtype).eps * max(1, terms) ** 0.5 * (1 + float(reference.abs().max()))
    return bool((y - reference).abs().max() <= tolerance)


# --- the kinds ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """make: a plain layer, or a layer of 0.1 with its update. inputs: its arguments. config: of the injection. terms: how
    many products a sum in it has. own: the shapes of its weights, which nothing but the weights may have."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    config: dict[str, Any] = field(default_factory=dict)
    terms: int = 8

    def build(self, dtype: torch.dtype | None = None) -> tuple[nn.Module, nn.Module]:
        """The plain model and the adapted one."""
        layer = self.make()
        if isinstance(layer, lora.AdaptedLayer):
            model = fill(Holder(layer))
            plain = copy.deepcopy(model)
            lora.eject(plain)
            return plain, model
        return adapted(layer, dtype, **self.config)


def hf_conv1d(k: int, d: int, bias: bool = True) -> nn.Module:
    """Transformers' Conv1D, a linear layer that stores its weight as (d, k)."""
    layer: nn.Module = library("transformers.pytorch_utils").Conv1D(k, d)
    with torch.no_grad():
        layer.weight.normal_(), layer.bias.normal_()
    return layer


def ids(*shape: int, below: int = 7) -> Tensor:
    """Random token numbers."""
    return torch.randint(below, shape)


def attention_inputs(kdim: int = 4, vdim: int = 4) -> tuple[Tensor, ...]:
    """Query, key and value."""
    return torch.randn(2, 3, 4), torch.randn(2, 5, kdim), torch.randn(2, 5, vdim)


class ScaledEmbedding(nn.Embedding):
    """An embedding with a forward of its own, as Gemma's."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 2.5


class SamePadded(nn.Conv2d):
    """A convolution with a forward of its own, as TensorFlow's padding needs one."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(nn.functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


class Standardized(nn.Conv2d):
    """A convolution that standardizes its weight, which makes it no linear function of it."""

    def forward(self, x: Tensor) -> Tensor:
        W = self.weight
        W = (W - W.mean((1, 2, 3), keepdim=True)) / (W.std((1, 2, 3), keepdim=True) + 1e-3)
        return self._conv_forward(x, W, self.bias)


class Normalized(nn.Linear):
    """A linear layer that normalises its weight and scales its output, as heads and quantization-aware layers do."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * nn.functional.linear(x, nn.functional.normalize(self.weight), self.bias)


class Activated(nn.Linear):
    """A linear layer whose forward applies a function to what torch's computes."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).tanh()


THREE = {"enable_lora": [True, False, True], "slice_widths": {"layer": [4, 1, 2]}}
KINDS = {
    "linear": Kind(lambda: nn.Linear(5, 4), lambda: (torch.randn(3, 5),)),
    "normalized linear": Kind(lambda: Normalized(5, 4), lambda: (torch.randn(3, 5),), terms=16),
    "merged normalized linear": Kind(lambda: Normalized(5, 7), lambda: (torch.randn(3, 5),), THREE, terms=16),
    "activated linear": Kind(lambda: Activated(5, 4), lambda: (torch.randn(3, 5),)),
    "transformers' Conv1D": Kind(lambda: hf_conv1d(4, 5), lambda: (torch.randn(3, 5),)),
    "merged linear": Kind(lambda: nn.Linear(5, 7), lambda: (torch.randn(3, 5),), THREE),
    "merged Conv1D": Kind(lambda: hf_conv1d(7, 5), lambda: (torch.randn(3, 5),), THREE),
    "embedding": Kind(lambda: nn.Embedding(7, 4, padding_idx=2), lambda: (torch.tensor([[0, 2, 6], [6, 6, 1]]),)),
    "scaled embedding": Kind(lambda: ScaledEmbedding(7, 4, padding_idx=2), lambda: (torch.tensor([[0, 2], [6, 6]]),)),
    "bag, sum": Kind(lambda: nn.EmbeddingBag(7, 4, mode="sum", padding_idx=2), lambda: (torch.tensor([[0, 2], [6, 6]]),)),
    "bag, mean": Kind(lambda: nn.EmbeddingBag(7, 4), lambda: (torch.tensor([0, 2, 6, 6]), torch.tensor([0, 1]))),
    "bag, max": Kind(lambda: nn.EmbeddingBag(7, 4, mode="max"), lambda: (torch.tensor([[0, 2], [6, 5]]),)),
    "conv1d": Kind(lambda: nn.Conv1d(4, 6, 3, groups=2, padding=1), lambda: (torch.randn(2, 4, 5),), terms=12),
    "conv2d": Kind(lambda: nn.Conv2d(2, 3, (2, 3), stride=2, padding=1), lambda: (torch.randn(2, 2, 4, 5),), terms=12),
    "conv3d": Kind(lambda: nn.Conv3d(2, 2, 2), lambda: (torch.randn(1, 2, 3, 2, 3),), terms=16),
    "conv2d of 0.1": Kind(
        lambda: lora.Conv2d(2, 4, 3, r=2, lora_alpha=3, groups=2, merge_weights=False),
        lambda: (torch.randn(2, 2, 4, 5),),
        terms=18,
    ),
    "transposed conv2d of 0.1": Kind(
        lambda: lora.ConvLoRA(
            nn.ConvTranspose2d, 4, 6, 3, r=2, lora_alpha=3, stride=2, groups=2, output_padding=1, merge_weights=False
        ),
        lambda: (torch.randn(2, 4, 2, 3),),
        terms=24,
    ),
    "transposed conv2d": Kind(
        lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=2, groups=2, output_padding=1),
        lambda: (torch.randn(2, 4, 2, 3),),
        terms=24,
    ),
    "conv2d with a forward of its own": Kind(lambda: SamePadded(2, 3, 2), lambda: (torch.randn(2, 2, 3, 4),), terms=12),
    "standardized conv2d": Kind(lambda: Standardized(2, 3, 2), lambda: (torch.randn(2, 2, 3, 4),), terms=64),
    "bilinear": Kind(lambda: nn.Bilinear(3, 4, 5), lambda: (torch.randn(2, 3), torch.randn(2, 4)), terms=12),
    "attention": Kind(lambda: nn.MultiheadAttention(4, 2, batch_first=True), attention_inputs, terms=32),
    "attention over other widths": Kind(
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True), lambda: attention_inputs(3, 5), terms=32
    ),
}
every_kind = sorted(KINDS)


# --- copies, and what is computed on the way ------------------------------------------------------------------------


def reload(module: nn.Module) -> nn.Module:
    """The module after `torch.save` and `torch.load`."""
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": reload}


class Watch(TorchDispatchMode):
    """Keeps every tensor that is computed, but for those that share the memory of `known` ones."""

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.made.append(t)
        return result

    def sizes(self) -> set[int]:
        """How many numbers the computed tensors hold."""
        return {t.numel() for t in self.made}


@contextmanager
def saved_tensors() -> Iterator[list[Tensor]]:
    """The tensors that autograd keeps for the backward pass of what is computed inside the block."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        yield kept
