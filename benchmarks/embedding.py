"""G5: a step of an embedding, against loralib 0.1.2 and PEFT.

The reference is the frozen lookup, which has no backward pass. The gradient of A is dense, (r, V), in all three libraries.
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
class Embedding(Case):
    """n tokens of a vocabulary of V, d wide, r rank."""

    group_title = "{dtype}, V {V}, d {d}"
    case_title = "{n} tokens, r {r}"
    n: int
    V: int
    d: int
    r: int
    dtype: str = "float32"


def contenders(case: Embedding, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    dtype = getattr(torch, case.dtype)
    layer = nn.Embedding(case.V, case.d, device=device, dtype=dtype)
    ids = torch.randint(case.V, (case.n,), device=device)
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 16}
    models = {
        FROZEN: peers.holder(layer),
        LEGACY: peers.legacy("Embedding", layer, case.V, case.d, **options),
        PEFT: peers.peft_layer(layer, upcast=False, **options),
        OURS: peers.ours(lora, layer, dtype, **options),
    }
    return {name: Contender(peers.step(model, ids), model) for name, model in models.items()}


def goals(rows: list[Row]) -> list[Goal]:
    return [Goal("G5", "times faster than a peer, at worst", worst(rows, "speedup", (LEGACY, PEFT), min), at_least=1.6)]


BENCHMARK = Benchmark(
    cases=[Embedding(n, 50257, 768, r) for n in (2048, 8192) for r in (4, 16)],
    quick=[Embedding(2048, 50257, 768, 4), Embedding(8192, 50257, 768, 16)],
    smallest=Embedding(4, 11, 8, 2),
    measure=timed(contenders),
    goals=goals,
    axis="time / frozen lookup",
)
