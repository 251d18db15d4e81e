"""What a layer costs before any arithmetic: 4 tokens, 16 → 16; a step and the forward pass alone.

The reference is the same layer frozen, forward and dX. The goal: forward and step not slower than
0.1's. Such layers are not what LoRA is for, but tests and toys are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, where, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import FROZEN, LEGACY, PEFT


@dataclass(frozen=True)
class Tiny(Case):
    """n tokens, d in and out, r rank, p dropout; forward: that alone, without gradients."""

    group_title = "{what}"
    case_title = "{n} x ({d}→{d}), r {r}, dropout {p:g}"
    n: int
    d: int
    r: int
    p: float
    what: str


def forward_alone(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model(x)

    return run


def contenders(case: Tiny, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    layer = nn.Linear(case.d, case.d, device=device)
    x = torch.randn(case.n, case.d, device=device, requires_grad=True)
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 16, "lora_dropout": case.p}
    models = {
        FROZEN: peers.holder(layer),
        LEGACY: peers.legacy("Linear", layer, case.d, case.d, **options),
        PEFT: peers.peft_layer(layer, upcast=False, **options),
        OURS: peers.ours(lora, layer, torch.float32, **options),
    }
    way = peers.step if case.what == "step" else forward_alone
    return {name: Contender(way(model, x), model) for name, model in models.items()}


def goals(rows: list[Row]) -> list[Goal]:
    found = []
    for what in ("step", "forward"):
        some = where(rows, what=what)
        found.append(Goal("", f"{what}: times faster than 0.1, at worst", worst(some, "speedup", [LEGACY], min), at_least=1))
        found.append(Goal("", f"{what}: than PEFT, at worst", worst(some, "speedup", [PEFT], min)))
    return found


BENCHMARK = Benchmark(
    cases=[Tiny(4, 16, 4, p, what) for what in ("step", "forward") for p in (0.0, 0.1)],
    quick=[Tiny(4, 16, 4, 0.0, what) for what in ("step", "forward")],
    smallest=Tiny(2, 4, 2, 0.1, "step"),
    measure=timed(contenders),
    goals=goals,
    axis="time / frozen layer",
)
