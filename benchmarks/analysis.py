"""Adapters compared by their factors, and amplification in the base's weights, against the route by way of dense matrices.

similarity: φ of the right singular vectors of each layer of two adapters. amplification: table 7 of the paper for one. The
dense route forms every ΔW in float64 and decomposes it, and W, in full. error: the largest difference of ours from its figures,
for norms as a share of them; for the first layer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.goals import Benchmark, Goal, column, where
from benchmarks.harness import OURS, Case, Contender, Effort, Options, Row, timed
from loralib.analysis.amplification import SHARES

DENSE = "dense"
LONG = Effort(rounds=3, seconds=0)


@dataclass(frozen=True)
class Analysis(Case):
    """So many layers (d, d) with updates of rank r. dense: whether the dense route is measured as well."""

    group_title = "{what}"
    case_title = "{layers} layers of {d} x {d}, r {r}"
    what: str
    layers: int
    d: int
    r: int
    dense: bool = True


def drawn(case: Analysis, lora: ModuleType) -> Any:
    """An adapter of random factors."""
    factors = ((torch.randn(case.r, case.d), torch.randn(case.d, case.r)) for _ in range(case.layers))
    layers = {str(i): lora.LoRAUpdate(A, B, 2 * case.r) for i, (A, B) in enumerate(factors)}
    return lora.Adapter(lora.LoRAConfig(), layers)


def decomposed(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return U, S, Vh


def delta(update: Any) -> Tensor:
    D: Tensor = update.scaling * update.B.double() @ update.A.double()
    return D


def dense_similarity(a: Any, b: Any) -> dict[str, Tensor]:
    """φ of every layer by way of the dense matrices."""
    found = {}
    for name in a.layers:
        U, V = (decomposed(delta(each.layers[name]))[2][: each.layers[name].r].t() for each in (a, b))
        i, j = (torch.arange(1, Q.shape[1] + 1) for Q in (U, V))
        found[name] = (U.t() @ V).square().cumsum(0).cumsum(1) / torch.minimum(i[:, None], j)
    return found


def dense_amplification(adapter: Any, base: nn.Module) -> dict[str, list[float]]:
    """By layer: the norms of W in ΔW's directions and in its own, and the overlaps, by way of the dense matrices."""
    found = {}
    for name, update in adapter.layers.items():
        D, W, r = delta(update), base.get_submodule(name).weight.detach().double(), update.r
        (U, _, Vh), (X, T, Yh) = decomposed(D), decomposed(W)
        norms = [float((U[:, :r].t() @ W @ Vh[:r].t()).norm()), float(T[:r].norm())]
        parts = [(X[:, :k].t() @ D, D @ Yh[:k].t()) for k in (max(1, round(share * min(W.shape))) for share in SHARES)]
        overlaps = [float((left.square().sum() + right.square().sum()) / (2 * D.square().sum())) for left, right in parts]
        found[name] = [*norms, *overlaps]
    return found


def similarity(case: Analysis, lora: ModuleType) -> Mapping[str, Contender]:
    a, b, ours = drawn(case, lora), drawn(case, lora), lora.subspace_similarity

    def error(seconds: float) -> Mapping[str, float | None]:
        first = [lora.Adapter(each.settings, {"0": each.layers["0"]}) for each in (a, b)]
        off = ours(*first)["0"].phi - dense_similarity(*first)["0"] if case.dense else None
        return {"error": None if off is None else float(off.abs().max())}

    dense = {DENSE: Contender(lambda: dense_similarity(a, b), facts=lambda seconds: {"error": 0.0})}
    return (dense if case.dense else {}) | {OURS: Contender(lambda: ours(a, b), facts=error)}


def amplification(case: Analysis, lora: ModuleType) -> Mapping[str, Contender]:
    adapter, ours = drawn(case, lora), lora.amplification
    base = nn.ModuleDict({name: nn.Linear(case.d, case.d, bias=False) for name in adapter.layers})

    def error(seconds: float) -> Mapping[str, float | None]:
        if not case.dense:
            return {"error": None}
        found, exact = ours(adapter, base)["0"], dense_amplification(adapter, base)["0"]
        norms = [math.log(one / other) for one, other in zip((found.by_update, found.by_weight), exact, strict=False)]
        overlaps = [one - other for one, other in zip(found.overlap.values(), exact[2:], strict=True)]
        return {"error": max(map(abs, norms + overlaps))}

    dense = {DENSE: Contender(lambda: dense_amplification(adapter, base), facts=lambda seconds: {"error": 0.0})}
    return (dense if case.dense else {}) | {OURS: Contender(lambda: ours(adapter, base), facts=error)}


def contenders(case: Analysis, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    return {"similarity": similarity, "amplification": amplification}[case.what](case, lora)


def measure(case: Analysis, options: Options) -> list[Row]:
    """Rounds of a case without its dense route take long enough for few of them."""
    return timed(contenders)(case, options if case.dense else replace(options, effort=LONG))


def goals(rows: list[Row]) -> list[Goal]:
    large = where(rows, what="similarity", dense=False)
    seconds, peak = column(large, "milliseconds", OURS), column(large, "peak_bytes", OURS)
    size = 8 * large[0]["d"] ** 2 if large else 0
    errors = {what: column(where(rows, what=what), "error", OURS) for what in ("similarity", "amplification")}
    return [
        Goal("", "seconds for 200 layers of 4096 x 4096, r = 64", max(seconds) / 1e3 if seconds else None, at_most=60),
        Goal("", "peak memory for them, over that of one ΔW in float64", max(peak) / size if peak else None, at_most=1),
        Goal("", "error of φ", max(errors["similarity"], default=None), at_most=1e-10),
        Goal("", "error of the figures of amplification", max(errors["amplification"], default=None), at_most=0.01),
    ]


BENCHMARK = Benchmark(
    cases=[
        Analysis("similarity", 1, 1024, 64),
        Analysis("similarity", 200, 4096, 64, dense=False),
        Analysis("amplification", 1, 1024, 64),
        Analysis("amplification", 1, 4096, 64, dense=False),
    ],
    quick=[Analysis("similarity", 2, 512, 16), Analysis("amplification", 1, 800, 16)],
    smallest=Analysis("similarity", 2, 24, 3),
    measure=measure,
    goals=goals,
    axis="time / the dense route",
)
