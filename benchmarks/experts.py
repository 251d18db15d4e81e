"""G21: a step of a mixture's experts, against the frozen layer and PEFT's target_parameters.

A layer of the shape of Qwen3-MoE's, both projections adapted, with the routing drawn at random; forward and backward, where
gradients flow to the input of all. PEFT forms W + ΔW of all experts at each step, and refuses dropout there.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, where, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import FROZEN, PEFT

WHERE = ["experts.gate_up_proj", "experts.down_proj"]


@dataclass(frozen=True)
class Experts(Case):
    """So many experts, active ones of a token, width d, inner width k; r rank, p dropout; how transformers computes."""

    group_title = "{experts} experts, {active} active, {d}→{k}, {how}"
    case_title = "{tokens} tokens, r {r}, dropout {p:g}"
    experts: int
    active: int
    d: int
    k: int
    tokens: int
    r: int
    p: float
    how: str


class Routed(nn.Module):
    """The experts, and where each token goes."""

    def __init__(self, case: Experts, device: str):
        super().__init__()
        sizes = {"num_experts": case.experts, "hidden_size": case.d, "moe_intermediate_size": case.k}
        config = Qwen3MoeConfig(**sizes, num_experts_per_tok=case.active)
        config._experts_implementation = case.how
        self.config = config
        self.experts = Qwen3MoeExperts(config).to(device)
        for weight in self.experts.parameters():
            nn.init.normal_(weight, std=0.02)
        chosen = [torch.randperm(case.experts)[: case.active] for _ in range(case.tokens)]
        self.chosen = torch.stack(chosen).to(device)
        self.weights = torch.rand(case.tokens, case.active, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """y (tokens, d) for x (tokens, d)."""
        y: Tensor = self.experts(x, self.chosen, self.weights)
        return y


def contenders(case: Experts, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    layer = Routed(case, device).requires_grad_(False)
    x = torch.randn(case.tokens, case.d, device=device, requires_grad=True)
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 16, "target_modules": [], "target_parameters": WHERE}
    models = {FROZEN: layer, OURS: peers.ours_on(lora, copy.deepcopy(layer), lora_dropout=case.p, **options)}
    if not case.p:
        models[PEFT] = peers.peft_on(copy.deepcopy(layer), **options)
    steps: dict[str, Callable[[], object]] = {name: peers.step(model, x) for name, model in models.items()}
    return {name: Contender(step, models[name]) for name, step in steps.items()}


def goals(rows: list[Row]) -> list[Goal]:
    without = where(rows, p=0.0)
    return [
        Goal("G21", "time over the frozen layer, at worst", worst(without, "ratio", [OURS]), at_most=1.25),
        Goal("G21", "times faster than PEFT, at worst", worst(without, "speedup", [PEFT], min), at_least=2.0),
        Goal("G21", "share of PEFT's peak memory, at worst", worst(without, "peak_share", [PEFT]), at_most=1),
    ]


LARGE = (64, 8, 1024, 512, 512, 8)
BENCHMARK = Benchmark(
    cases=[Experts(*LARGE, p, how) for how in ("grouped_mm", "eager") for p in (0.0, 0.05)],
    quick=[Experts(16, 4, 256, 128, 128, 8, p, "grouped_mm") for p in (0.0, 0.05)],
    smallest=Experts(4, 2, 8, 4, 6, 2, 0.0, "eager"),
    measure=timed(contenders),
    goals=goals,
    axis="time / frozen layer",
)
