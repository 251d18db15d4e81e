"""Twenty adapters combined to one rank by an SVD that never forms ΔW, against the dense route.

The dense route adds the products up and decomposes the sum with torch's SVD in float32, a layer at a time. error: of ours, the
difference from the best approximation that float64 finds, over the norm of the sum; for the first layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, column, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed

DENSE = "dense"


@dataclass(frozen=True)
class Combine(Case):
    """So many adapters of rank r on so many layers (d, d), brought to rank r."""

    group_title = "{adapters} adapters of rank {r}"
    case_title = "{d} x {d}, layers: {layers}"
    layers: int
    d: int
    adapters: int
    r: int


def drawn(case: Combine, lora: ModuleType) -> list[Any]:
    """The adapters: random factors, scalings that differ."""
    found = []
    for i in range(case.adapters):
        model = nn.ModuleList(nn.utils.skip_init(nn.Linear, case.d, case.d) for _ in range(case.layers))
        config = {"target_modules": [str(j) for j in range(case.layers)], "r": case.r, "lora_alpha": case.r * (1 + i % 3)}
        found.append(lora.extract(peers.ours_on(lora, model, **config)))
    return found


def dense(adapters: list[Any], weights: list[float], r: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of every layer by way of the dense sum."""
    found = {}
    for name in adapters[0].layers:
        updates = [adapter.layers[name] for adapter in adapters]
        delta = torch.zeros(len(updates[0].B), updates[0].A.shape[1])
        for update, weight in zip(updates, weights, strict=True):
            delta.addmm_(update.B, update.A, alpha=weight * update.scaling)
        U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
        root = S[:r].sqrt()
        found[name] = (U[:, :r] * root, root[:, None] * Vh[:r])
    return found


def contenders(case: Combine, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    adapters = [adapter.to(device=device) for adapter in drawn(case, lora)]
    weights = [1 / case.adapters] * case.adapters

    def error(seconds: float) -> Mapping[str, float]:
        layers = [weight * adapter.layers["0"].delta().double() for weight, adapter in zip(weights, adapters, strict=True)]
        total = torch.stack(layers).sum(0)
        U, S, Vh = torch.linalg.svd(total, full_matrices=False)
        best = U[:, : case.r] * S[: case.r] @ Vh[: case.r]
        return {"error": float((lora.combine(adapters, weights, "svd", r=case.r).delta("0") - best).norm() / total.norm())}

    return {
        DENSE: Contender(lambda: dense(adapters, weights, case.r), facts=lambda seconds: {"error": 0.0}),
        OURS: Contender(lambda: lora.combine(adapters, weights, "svd", r=case.r), facts=error),
    }


def goals(rows: list[Row]) -> list[Goal]:
    return [
        Goal("", "share of the dense route's time, at worst", worst(rows, "ratio", [OURS]), at_most=0.1),
        Goal("", "share of the dense route's peak memory, at worst", _memory(rows), at_most=0.1),
        Goal("", "error over the norm of the sum, at worst", worst(rows, "error", [OURS]), at_most=1e-6),
    ]


def _memory(rows: list[Row]) -> float | None:
    ours, theirs = column(rows, "peak_bytes", OURS), column(rows, "peak_bytes", DENSE)
    return max((mine / its for mine, its in zip(ours, theirs, strict=True)), default=None)


BENCHMARK = Benchmark(
    cases=[Combine(1, 2048, 20, 16)],
    quick=[Combine(1, 1024, 20, 16)],
    smallest=Combine(2, 24, 3, 2),
    measure=timed(contenders),
    goals=goals,
    axis="time / the dense route",
)
