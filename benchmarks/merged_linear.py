"""G4: a step of a fused projection of which two slices in three have an update, against loralib 0.1.2.

The reference is the same layer frozen, forward and dX. PEFT is shown as well: it has no such layer, so its update is one of
full width, which is another model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import FROZEN, LEGACY

FULL_WIDTH = "PEFT (full width)"
ENABLED = [True, False, True]


@dataclass(frozen=True)
class MergedLinear(Case):
    """n tokens, d in, k out, r rank."""

    group_title = "{dtype}"
    case_title = "{n} x ({d}→{k}), r {r}"
    n: int
    d: int
    k: int
    r: int
    dtype: str


def contenders(case: MergedLinear, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    dtype = getattr(torch, case.dtype)
    layer = nn.Linear(case.d, case.k, device=device, dtype=dtype)
    x = torch.randn(case.n, case.d, device=device, dtype=dtype, requires_grad=True)
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 16}
    models = {
        FROZEN: peers.holder(layer),
        LEGACY: peers.legacy("MergedLinear", layer, case.d, case.k, enable_lora=ENABLED, **options),
        FULL_WIDTH: peers.peft_layer(layer, upcast=False, **options),
        OURS: peers.ours(lora, layer, dtype, enable_lora=ENABLED, **options),
    }
    return {name: Contender(peers.step(model, x), model) for name, model in models.items()}


def goals(rows: list[Row]) -> list[Goal]:
    return [
        Goal("G4", "times faster than 0.1, at worst", worst(rows, "speedup", [LEGACY], min), at_least=2.2),
        Goal("G4", "time / frozen layer, at worst", worst(rows, "ratio", [OURS]), at_most=1.2),
        Goal("G4", "share of 0.1's saved bytes, at worst", worst(rows, "saved_share", [LEGACY]), at_most=0.5),
    ]


BENCHMARK = Benchmark(
    cases=[MergedLinear(2048, 768, 2304, r, dtype) for dtype in ("float32", "bfloat16") for r in (4, 8, 16)],
    quick=[MergedLinear(2048, 768, 2304, 8, dtype) for dtype in ("float32", "bfloat16")],
    smallest=MergedLinear(4, 8, 12, 2, "float32"),
    measure=timed(contenders),
    goals=goals,
    axis="time / frozen layer",
)
