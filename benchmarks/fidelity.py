"""G13: how much of a small update a low-precision layer computes: the slope of what it adds on the true update.

With y from the layer, y₀ from the same layer without an update, and Δ = s·x·Aᵀ·Bᵀ in float64: ⟨y - y₀, Δ⟩ / ⟨Δ, Δ⟩, and
likewise for dX and for the merged weight, which has no goal: what rounding leaves of an update there is lost in any library.
0.1.2 has factors in the dtype of the base; ours and PEFT's are float32, their default, or the base's.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import loralib
from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, where, worst
from benchmarks.harness import BEFORE, OURS, Case, Options, Row, spread
from benchmarks.peers import LEGACY, PEFT

DRAWS = 5


@dataclass(frozen=True)
class Fidelity(Case):
    """size: ‖ΔW‖ / ‖W‖. bias: the standard deviation of the bias, where outputs have 1. factors: their dtype."""

    group_title = "{dtype}, {factors} factors, bias {bias}"
    case_title = "update of {size}"
    dtype: str
    factors: str
    size: float
    bias: int
    n: int = 512
    d: int = 1024
    r: int = 8


def models(case: Fidelity, device: str, versions: Mapping[str, ModuleType]) -> tuple[nn.Linear, dict[str, Any], Tensor, Tensor]:
    """The base layer, the layers with one and the same update of the wanted size, and its factors."""
    dtype, factors = getattr(torch, case.dtype), getattr(torch, case.factors)
    W, A, B = (torch.randn(shape) / case.d**0.5 for shape in ((case.d, case.d), (case.r, case.d), (case.d, case.r)))
    A, B = A.to(factors), (B * case.size * W.norm() / (B @ A).norm()).to(factors)
    layer = nn.Linear(case.d, case.d, device=device, dtype=dtype).requires_grad_(False)
    layer.weight.copy_(W)
    layer.bias.normal_(0, case.bias) if case.bias else layer.bias.zero_()
    options = {"r": case.r, "lora_alpha": case.r}
    made = {
        PEFT: peers.peft_layer(layer, upcast=case.factors == "float32", **options),
        **{name: peers.ours(lora, layer, factors, **options) for name, lora in versions.items()},
    }
    if case.factors == case.dtype:
        made[LEGACY] = peers.legacy("Linear", layer, case.d, case.d, **options)
    for model in made.values():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(A if "lora_A" in name else B)
    return layer, made, A.to(device), B.to(device)


def forward_and_dx(model: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    return {"forward": y.detach(), "dX": torch.autograd.grad(y, x, dy)[0]}


def merged_weight(name: str, model: Any, versions: Mapping[str, ModuleType]) -> Tensor:
    """The weight that a merged layer computes with."""
    if name == PEFT:
        model[0].merge()
        return model[0].base_layer.weight
    versions[name].merge(model) if name in versions else model.eval()
    return model[0].weight


def slopes(case: Fidelity, device: str, versions: Mapping[str, ModuleType]) -> dict[tuple[str, str], float]:
    """The slope by contender and by what was computed, of one draw of everything. versions: of ours, by contender."""
    layer, made, A, B = models(case, device, versions)
    x, dy = torch.randn(2, case.n, case.d, device=device).to(layer.weight.dtype)
    a, b = A.double(), B.double()
    true = {"forward": x.double() @ a.t() @ b.t(), "dX": dy.double() @ b @ a, "merged weight": b @ a}
    base = forward_and_dx(layer, x, dy) | {"merged weight": layer.weight}
    found = {}
    for name, model in made.items():
        computed = forward_and_dx(model, x, dy) | {"merged weight": merged_weight(name, model, versions)}
        for what, update in true.items():
            added = computed[what].double() - base[what].double()
            found[name, what] = float((added * update).sum() / update.square().sum())
    return found


def measure(case: Fidelity, options: Options) -> list[Row]:
    """A row for what is computed and who computes it; the spread is that of `DRAWS` draws, or fewer with less effort."""
    versions = {OURS: loralib} | ({BEFORE: options.before} if options.before else {})
    draws = [slopes(case, options.device, versions) for _ in range(min(options.effort.rounds, DRAWS))]
    titles = {"group": case.group, "case": case.label, **asdict(case)}
    return [
        {**titles, "case": f"{case.label}, {what}", "what": what, "contender": name}
        | spread("slope", [d[name, what] for d in draws])
        for what in ("forward", "dX", "merged weight")
        for name in dict.fromkeys(name for name, _ in draws[0])
    ]


def goals(rows: list[Row]) -> list[Goal]:
    found = []
    for what in ("forward", "dX"):
        errors = [row | {"error": abs(row["slope"] - 1)} for row in where(rows, what=what)]
        found.append(Goal("G13", f"{what}: |slope - 1|, at worst", worst(errors, "error", [OURS]), at_most=0.02))
        found.append(Goal("", f"{what}: |slope - 1| of the peers, at worst", worst(errors, "error", (PEFT, LEGACY))))
    survived = worst(where(rows, what="merged weight"), "slope", [OURS], min)
    return [*found, Goal("", "share of the update that is in our merged weight, at worst", survived)]


KINDS = [(dtype, factors) for dtype in ("bfloat16", "float16") for factors in ("float32", dtype)]
SIZES = (0.003, 0.001, 0.0003)

BENCHMARK = Benchmark(
    cases=[Fidelity(*kind, size, bias) for kind in KINDS for bias in (0, 1) for size in SIZES],
    quick=[Fidelity(*kind, size, 1, 128, 512) for kind in KINDS[1::2] for size in SIZES],
    smallest=Fidelity("bfloat16", "bfloat16", 0.003, 1, 8, 16, 2),
    measure=measure,
    goals=goals,
    axis="slope on the true update",
    figure="slope",
)
