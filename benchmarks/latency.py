"""Table 1: what a forward pass costs that predicts, merged and not, against the base model, by batch and length.

GPT-2's shape, LoRA of rank 4 on query and value of its fused projection (all of it in PEFT, which knows no slices), random
weights, no gradients. The paper's sizes are batches of 1, 16 and 32 with 128, 256 and 512 tokens; for generating a text one
token at a time, a batch of 1 with 1 token stands here as well, without its past.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import FROZEN, PEFT
from benchmarks.whole_model import ENABLED, gpt2

MERGED, PEFT_MERGED = "loralib, merged", "PEFT, merged"


@dataclass(frozen=True)
class Latency(Case):
    """A model of so many layers and a width d; batch and length of the input; r rank."""

    group_title = "GPT-2-shaped, {layers} x {d}"
    case_title = "{batch} x {length} tokens, r {r}"
    layers: int
    d: int
    r: int
    batch: int
    length: int


def merged_peft(model: Any) -> nn.Module:
    """PEFT's model with its updates merged."""
    for module in model.modules():
        if hasattr(module, "merge") and hasattr(module, "base_layer"):
            module.merge()
    return model


def contenders(case: Latency, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    base = gpt2(case.layers, case.d, case.length).to(device).requires_grad_(False).eval()
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 2 * case.r, "target_modules": ["c_attn"]}
    ours = peers.ours_on(lora, copy.deepcopy(base), enable_lora=ENABLED, **options).eval()
    theirs = peers.peft_on(copy.deepcopy(base), fan_in_fan_out=True, **options).eval()
    merged = copy.deepcopy(ours)
    lora.merge(merged)
    models = {FROZEN: base, PEFT: theirs, PEFT_MERGED: merged_peft(copy.deepcopy(theirs)), OURS: ours, MERGED: merged}
    embedded = torch.randn(case.batch, case.length, case.d, device=device)

    def forward(model: nn.Module) -> object:
        with torch.inference_mode():
            return model(inputs_embeds=embedded, use_cache=False)

    return {name: Contender(lambda model=model: forward(model), model) for name, model in models.items()}


def goals(rows: list[Row]) -> list[Goal]:
    return [
        Goal("Table 1", "time of a merged model over the base's, at worst", worst(rows, "ratio", [MERGED]), at_most=1.03),
        Goal("Table 1", "times faster than PEFT before merging, at worst", worst(rows, "speedup", [PEFT], min), at_least=1.0),
    ]


SIZES = ((1, 1), (1, 128), (4, 256), (8, 128))

BENCHMARK = Benchmark(
    cases=[Latency(12, 768, 4, batch, length) for batch, length in SIZES],
    quick=[Latency(4, 256, 4, 1, 32)],
    smallest=Latency(1, 16, 2, 1, 6),
    measure=timed(contenders, memory=False),
    goals=goals,
    axis="time / base model",
)
