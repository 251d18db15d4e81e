"""G6: a step of a Conv2d, with factors of true rank against PEFT, with those of loralib 0.1 against 0.1.2.

The reference is the same convolution frozen, forward and dX.
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
from benchmarks.peers import FROZEN, LEGACY, PEFT


@dataclass(frozen=True)
class Conv2d(Case):
    """n images of size x size with d channels, k channels out, kernel 3, r rank; factors "standard" or those of "0.1"."""

    group_title = "{dtype}, {factors} factors"
    case_title = "{n} x {size}² x ({d}→{k}), r {r}"
    n: int
    size: int
    d: int
    k: int
    r: int
    dtype: str
    factors: str


def as_in_0_1(lora: ModuleType, layer: nn.Conv2d, options: Mapping[str, Any]) -> nn.Module:
    """Our drop-in layer with the weight of `layer`."""
    W, sizes = layer.weight, (layer.in_channels, layer.out_channels, 3)
    made = lora.Conv2d(*sizes, padding=1, dtype=W.dtype, device=W.device, **options)
    made.load_state_dict(layer.state_dict(), strict=False)
    lora.mark_only_lora_as_trainable(made)
    return peers.draw_factors(nn.Sequential(made))


def contenders(case: Conv2d, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    dtype, options = getattr(torch, case.dtype), dict[str, Any](r=case.r, lora_alpha=16)
    layer = nn.Conv2d(case.d, case.k, 3, padding=1, device=device, dtype=dtype)
    x = torch.randn(case.n, case.d, case.size, case.size, device=device, dtype=dtype, requires_grad=True)
    models = {FROZEN: peers.holder(layer)}
    if case.factors == "standard":
        models |= {PEFT: peers.peft_layer(layer, upcast=False, **options), OURS: peers.ours(lora, layer, dtype, **options)}
    else:
        models[LEGACY] = peers.legacy("Conv2d", layer, case.d, case.k, 3, padding=1, **options)
        models[OURS] = as_in_0_1(lora, layer, options)
    return {name: Contender(peers.step(model, x), model) for name, model in models.items()}


def goals(rows: list[Row]) -> list[Goal]:
    return [
        Goal("G6", "standard factors: times faster than PEFT, at worst", worst(rows, "speedup", [PEFT], min), at_least=1),
        Goal("G6", "standard factors: share of PEFT's peak memory, at worst", worst(rows, "peak_share", [PEFT]), at_most=0.9),
        Goal("G6", "0.1's factors: times faster than 0.1, at worst", worst(rows, "speedup", [LEGACY], min), at_least=1),
    ]


KINDS = [(dtype, factors) for dtype in ("float32", "bfloat16") for factors in ("standard", "0.1")]

BENCHMARK = Benchmark(
    cases=[Conv2d(8, 28, 128, 256, r, *kind) for kind in KINDS for r in (4, 8, 16)],
    quick=[Conv2d(2, 28, 128, 256, 8, *kind) for kind in KINDS],
    smallest=Conv2d(1, 4, 3, 6, 2, "float32", "0.1"),
    measure=timed(contenders),
    goals=goals,
    axis="time / frozen convolution",
)
