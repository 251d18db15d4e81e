"""Greedy generation with a GPT-2-shaped model: tokens a second, unmerged and merged, against the bare model and PEFT.

Random weights; the update is on query and value of the fused projection (PEFT's on its full width). No goal is set for it: a
merged model should generate as fast as the bare one.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, column, geometric_mean
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import PEFT

BASE, MERGED, PEFT_MERGED = "bare model", "loralib, merged", "PEFT, merged"


@dataclass(frozen=True)
class Generate(Case):
    """Layers and width d; batch, tokens of the prompt and new ones; r rank."""

    group_title = "{layers} x {d}, {dtype}"
    case_title = "{batch} x ({prompt} + {new}) tokens, r {r}"
    layers: int
    d: int
    batch: int
    prompt: int
    new: int
    r: int
    dtype: str


def gpt2(case: Generate) -> nn.Module:
    sizes: dict[str, Any] = {
        "n_layer": case.layers,
        "n_embd": case.d,
        "n_head": max(1, case.d // 64),
        "n_positions": case.prompt + case.new,
    }
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=None, pad_token_id=0)).eval().requires_grad_(False)


def contenders(case: Generate, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    dtype = getattr(torch, case.dtype)
    base = gpt2(case).to(device, dtype)
    ids = torch.randint(1, 50257, (case.batch, case.prompt), device=device)
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 16, "target_modules": ["c_attn"]}

    def ours() -> nn.Module:
        return peers.ours_on(lora, copy.deepcopy(base), dtype, enable_lora=[True, False, True], **options)

    def theirs() -> nn.Module:
        return peers.peft_on(copy.deepcopy(base), upcast=False, fan_in_fan_out=True, **options).eval()

    models = {BASE: base, OURS: ours(), MERGED: ours(), PEFT: theirs(), PEFT_MERGED: theirs()}
    lora.merge(models[MERGED])
    for layer in models[PEFT_MERGED].modules():
        if hasattr(layer, "merge"):
            layer.merge()

    def generating(model: nn.Module) -> Callable[[], object]:
        lengths = {"max_new_tokens": case.new, "min_new_tokens": case.new}
        return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths)

    def speed(seconds: float) -> Mapping[str, Any]:
        return {"tokens_per_second": case.batch * case.new / seconds}

    return {name: Contender(generating(model), model, facts=speed) for name, model in models.items()}


def goals(rows: list[Row]) -> list[Goal]:
    names = (OURS, MERGED, PEFT, PEFT_MERGED)
    return [Goal("", f"{name}: time / bare model, mean", geometric_mean(column(rows, "ratio", name))) for name in names]


BENCHMARK = Benchmark(
    cases=[Generate(6, 768, batch, 32, 64, 8, dtype) for dtype in ("float32", "bfloat16") for batch in (1, 8)],
    quick=[Generate(6, 768, 1, 8, 8, 8, "float32")],
    smallest=Generate(1, 16, 1, 2, 2, 2, "float32"),
    measure=timed(contenders, memory=False),
    goals=goals,
    axis="time / bare model",
)
