"""G8: merge and unmerge a large linear layer, against loralib 0.1.2 (`eval()`, `train()`) and PEFT.

The reference is one copy of the weight. exact: whether the weight has its own bits again after all that was measured. Peak is
what merging needs in addition to the model. In bfloat16 PEFT's factors and ours are float32, their default; 0.1.2's are not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, column, where, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import LEGACY, PEFT


@dataclass(frozen=True)
class Merge(Case):
    """A weight (d, d), r rank."""

    group_title = "{dtype}"
    case_title = "{d} x {d}, r {r}"
    d: int
    r: int
    dtype: str


def contenders(case: Merge, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    layer = nn.Linear(case.d, case.d, device=device, dtype=getattr(torch, case.dtype))
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 16}
    legacy = peers.legacy("Linear", layer, case.d, case.d, **options)
    theirs = peers.peft_layer(layer, **options)
    ours = peers.ours(lora, layer, **options)

    def cycle(*halves: Callable[[], object]) -> Callable[[], object]:
        return lambda: [half() for half in halves]

    def exact(weight: Callable[[], Tensor]) -> Callable[[float], Mapping[str, Any]]:
        return lambda seconds: {"exact": torch.equal(weight(), layer.weight)}

    return {
        "a copy": Contender(layer.weight.detach().clone, facts=exact(lambda: layer.weight)),
        LEGACY: Contender(cycle(legacy.eval, legacy.train), facts=exact(lambda: legacy[0].weight)),
        PEFT: Contender(cycle(theirs[0].merge, theirs[0].unmerge), facts=exact(lambda: theirs[0].base_layer.weight)),
        OURS: Contender(cycle(lambda: lora.merge(ours), lambda: lora.unmerge(ours)), facts=exact(lambda: ours[0].weight)),
    }


def goals(rows: list[Row]) -> list[Goal]:
    exact = column(rows, "exact", OURS)
    over_a_copy = {dtype: worst(where(rows, dtype=dtype), "ratio", [OURS]) for dtype in DTYPES}
    return [
        Goal("G8", "float32: time over a copy of the weight", over_a_copy["float32"], at_most=1.25),
        Goal("G8", "bfloat16: time over a copy of the weight", over_a_copy["bfloat16"], at_most=1.5),
        Goal("", "times faster than a peer, at worst", worst(rows, "speedup", (LEGACY, PEFT), min)),
        Goal("G8", "share of cases in which the weight is back bit for bit", sum(exact) / len(exact), at_least=1),
    ]


DTYPES = ("float32", "bfloat16")

BENCHMARK = Benchmark(
    cases=[Merge(4096, 16, dtype) for dtype in DTYPES],
    quick=[Merge(4096, 16, dtype) for dtype in DTYPES],
    smallest=Merge(16, 2, "bfloat16"),
    measure=timed(contenders),
    goals=goals,
    axis="time / a copy of the weight",
)
