"""G1–G3: a step of one linear layer, against the frozen layer, loralib 0.1.2 and PEFT.

The reference is the same layer frozen, forward and dX. bfloat16: factors in bfloat16, too; mixed: a bfloat16 base with float32
factors, PEFT's default, on which 0.1.2 raises; autocast: bfloat16 over a float32 base.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, overhead_share, slowest_mean, where, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import FROZEN, LEGACY, PEFT

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "mixed": torch.bfloat16, "autocast": torch.float32}
SHAPES = [
    (2048, 768, 768, 4),
    (2048, 768, 768, 8),
    (2048, 768, 768, 16),
    (2048, 768, 3072, 8),
    (4096, 1024, 1024, 8),
    (512, 4096, 4096, 16),
]
DROPOUTS = (0.0, 0.05, 0.1)


@dataclass(frozen=True)
class Linear(Case):
    """n tokens, d in, k out, r rank, p dropout."""

    group_title = "{dtype}, dropout {p:g}"
    case_title = "{n} x ({d}→{k}), r {r}"
    n: int
    d: int
    k: int
    r: int
    p: float
    dtype: str


def contenders(case: Linear, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    dtype = DTYPES[case.dtype]
    factors = torch.float32 if case.dtype == "mixed" else dtype
    layer = nn.Linear(case.d, case.k, device=device, dtype=dtype)
    x = torch.randn(case.n, case.d, device=device, dtype=dtype, requires_grad=True)
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 16, "lora_dropout": case.p}
    models = {
        FROZEN: peers.holder(layer),
        LEGACY: peers.legacy("Linear", layer, case.d, case.k, dtype=factors, **options),
        PEFT: peers.peft_layer(layer, upcast=case.dtype == "mixed", **options),
        OURS: peers.ours(lora, layer, factors, **options),
    }
    autocast = torch.bfloat16 if case.dtype == "autocast" else None
    return {name: Contender(peers.step(model, x, autocast=autocast), model) for name, model in models.items()}


def goals(rows: list[Row]) -> list[Goal]:
    """All three goals; G2 and G3 speak of the shapes of at least 2048 tokens."""
    both, dropped = (LEGACY, PEFT), {"p": lambda p: p > 0}
    plain, large = where(rows, dtype="float32", p=0.0), where(rows, n=lambda n: n >= 2048)
    found = [
        Goal("G1", "float32: overhead over that of the faster peer", overhead_share(plain, both), at_most=0.5),
        Goal("G1", "float32: times faster than a peer, at worst", worst(plain, "speedup", both, min), at_least=1 / 1.03),
    ]
    for dtype, bound in (("float32", 1.35), ("bfloat16", 1.6)):
        speedup = slowest_mean(where(large, dtype=dtype, **dropped), both)
        found.append(Goal("G2", f"{dtype}, dropout: times faster than both, mean", speedup, at_least=bound))
        saved = worst(where(rows, dtype=dtype, **dropped), "saved_share", both)
        found.append(Goal("G2", f"{dtype}, dropout: share of a peer's saved bytes", saved, at_most=0.56))
    for words, condition, bound, saved_bound in (("no dropout", {"p": 0.0}, 1.7, 0.52), ("dropout", dropped, 2.2, 0.30)):
        mixed = where(rows, dtype="mixed", **condition)
        speedup = slowest_mean(where(mixed, n=lambda n: n >= 2048), [PEFT])
        found.append(Goal("G3", f"mixed, {words}: times faster than PEFT, mean", speedup, at_least=bound))
        saved = worst(mixed, "saved_share", [PEFT])
        found.append(Goal("G3", f"mixed, {words}: share of PEFT's saved bytes", saved, at_most=saved_bound))
    return found


BENCHMARK = Benchmark(
    cases=[Linear(*shape, p, dtype) for dtype in DTYPES for p in DROPOUTS for shape in SHAPES],
    quick=[Linear(2048, 768, 768, 8, p, dtype) for dtype in DTYPES for p in (0.0, 0.1)],
    smallest=Linear(4, 8, 6, 2, 0.1, "mixed"),
    measure=timed(contenders),
    goals=goals,
    axis="time / frozen layer",
)
