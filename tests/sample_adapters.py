"""Adapters drawn by hypothesis: every kind of update, rank, scaling and dtype, with and without extra tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import loralib as lora

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ALPHAS = st.one_of(st.integers(1, 32), st.floats(0.125, 32).map(float))
NAMES = st.lists(st.sampled_from(["q", "v", "layer", "0", "10", "up_proj", "ä"]), min_size=1, max_size=3).map(".".join)
PLAIN, ALL = ("linear", "embedding", "conv"), (
    "linear", "embedding", "conv", "grouped", "transposed", "legacy", "merged", "projection", "bilinear", "experts", "shared",
)  # fmt: skip


def tensor(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def whole(*shape: int) -> Tensor:
    """Small whole numbers, whose sums of products are exact in any order."""
    return torch.randint(-4, 5, shape).float()


UPDATE = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)
TWO = {"a.q": UPDATE, "a.v": UPDATE}
ROWS = lora.TokenRows((1,), torch.ones(1, 2))


def of(layers: Mapping[str, lora.LoRAUpdate] = TWO, **rest: Any) -> lora.Adapter:
    """An adapter of these layers; by default of two equal ones."""
    return lora.Adapter(lora.LoRAConfig(modules_to_save=["head"]), layers, **rest)


def _linear(r: int, d: int, k: int) -> tuple[Any, ...]:
    return lora.LoRAUpdate, (r, d), (k, r), {}


def _conv(groups: int, transposed: bool) -> Callable[[int, int, int], tuple[Any, ...]]:
    fields = {"groups": groups, "transposed": transposed}
    return lambda r, d, k: (lora.ConvolutionUpdate, (r, d, 2, 1), (k * groups, r, 1, 1), fields)


KINDS: dict[str, Callable[[int, int, int], tuple[Any, ...]]] = {
    "linear": _linear,
    "embedding": lambda r, d, k: (lora.EmbeddingUpdate, (r, d), (k, r), {}),
    "conv": _conv(1, False),
    "grouped": _conv(2, False),
    "transposed": _conv(1, True),
    "legacy": lambda r, d, k: (lora.LegacyConvolutionUpdate, (2 * r, 2 * d), (2 * k, 2 * r), {"weight_shape": (k, d, 2, 2)}),
    "merged": lambda r, d, k: (
        lora.FusedUpdate, (2 * r, d), (k + 2, r), {"enable_lora": (True, False, True), "widths": (k, 3, 2)},
    ),
    "projection": lambda r, d, k: (lora.ProjectionUpdate, (r, d), (k, r), {}),
    "experts": lambda r, d, k: (lora.ExpertsUpdate, (3, r, d), (3, k, r), {}),
    "shared": lambda r, d, k: (lora.ExpertsUpdate, (1, r, d), (3, k, r), {}),
    "bilinear": lambda r, d, k: (lora.LoRAUpdate, (r, d, 2), (k, r), {}),
}  # fmt: skip


@st.composite
def updates(
    draw: st.DrawFn,
    kinds: Sequence[str] = ALL,
    dtypes: Sequence[torch.dtype] = DTYPES,
    d: int | None = None,
    k: int | None = None,
    r: int | None = None,
    dora: bool = False,
) -> Any:
    """An update of one of `kinds`; d inputs, k outputs and rank r are drawn where they are not given."""
    d, k, r = (value or draw(st.integers(1, 5)) for value in (d, k, r))
    kind, shape_A, shape_B, fields = KINDS[draw(st.sampled_from(list(kinds)))](r, d, k)
    dtype, seed = draw(st.sampled_from(list(dtypes))), draw(st.integers(0, 99))
    magnitude = tensor(shape_B[:1], dtype, seed + 2).abs() if dora else None
    A, B = tensor(shape_A, dtype, seed), tensor(shape_B, dtype, seed + 1)
    return kind(A, B, draw(ALPHAS), draw(st.booleans()), **fields, magnitude=magnitude)


@st.composite
def adapters(
    draw: st.DrawFn, kinds: Sequence[str] = ALL, dtypes: Sequence[torch.dtype] = DTYPES, extra: bool = True, **how: Any
) -> lora.Adapter:
    """An adapter of one to three layers. extra: also tensors, token rows and metadata. how: as in `updates`."""
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    layers = {name: draw(updates(kinds, dtypes, **how)) for name in names}
    tensors: dict[str, Tensor] = {}
    rows, metadata = {}, {}
    if extra and draw(st.booleans()):
        tensors = {"head.weight": tensor((2, 3), draw(st.sampled_from(DTYPES)), 7), "head.count": torch.tensor(3)}
        rows = {"emb.weight": lora.TokenRows((4, 1), tensor((2, 3), torch.float32, 8))}
        metadata = {"task_type": "SEQ_CLS"}
    config = lora.LoRAConfig(lora_dropout=draw(st.sampled_from([0.0, 0.1])), modules_to_save=["head"] if tensors else [])
    return lora.Adapter(config, layers, tensors, metadata, rows)
