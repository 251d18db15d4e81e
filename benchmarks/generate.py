"""G20: greedy generation, tokens a second, unmerged and merged, against the bare model and PEFT.

Random weights in the shapes of SmolLM2-135M, with LoRA of rank 16 on all linear layers, and of a GPT-2 of six blocks, with LoRA
on query and value of its fused projection (PEFT's on its full width).
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
from benchmarks.goals import Benchmark, Goal, where, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.llm import LanguageModel, llama
from benchmarks.peers import PEFT

BASE, MERGED, PEFT_MERGED = "bare model", "loralib, merged", "PEFT, merged"
GPT2, SMOLLM2 = "GPT-2-shaped", "SmolLM2-shaped"


@dataclass(frozen=True)
class Generate(Case):
    """A model of so many blocks and a width d; batch, tokens of the prompt and new ones; r rank."""

    group_title = "{shape}, {layers} x {d}, {dtype}"
    case_title = "{batch} x ({prompt} + {new}) tokens, r {r}"
    shape: str
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


def smollm2(case: Generate) -> nn.Module:
    vocabulary = 49_152 if case.layers > 1 else 40
    shape = LanguageModel(case.layers, case.d, vocabulary, case.r, case.batch, case.prompt + case.new, 0.0, 1.0)
    model: Any = llama(shape).eval().requires_grad_(False)
    model.generation_config.pad_token_id = 0
    return model  # type: ignore[no-any-return]


def contenders(case: Generate, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    dtype, fused = getattr(torch, case.dtype), case.shape == GPT2
    base: Any = (gpt2 if fused else smollm2)(case).to(device, dtype)
    ids = torch.randint(1, base.config.vocab_size, (case.batch, case.prompt), device=device)
    targets = {"target_modules": ["c_attn"] if fused else "all-linear"}
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 16, **targets}

    def ours() -> nn.Module:
        slices: dict[str, Any] = {"enable_lora": [True, False, True]} if fused else {}
        return peers.ours_on(lora, copy.deepcopy(base), dtype, **slices, **options).eval()

    def theirs() -> nn.Module:
        return peers.peft_on(copy.deepcopy(base), upcast=False, fan_in_fan_out=fused, **options).eval()

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
    wide = where(rows, dtype="float32")
    return [
        Goal("G20", "speed of the unmerged model over the bare one's, at worst", slowest(wide, OURS), at_least=0.85),
        Goal("G20", "speed of the merged model over the bare one's, at worst", slowest(wide, MERGED), at_least=0.97),
        Goal("G20", "times faster than PEFT unmerged, at worst", worst(rows, "speedup", [PEFT], min), at_least=1.0),
    ]


def slowest(rows: list[Row], contender: str) -> float | None:
    """The least speed of a contender over that of the bare model."""
    ratio = worst(rows, "ratio", [contender])
    return None if ratio is None else 1 / ratio


SHAPES = ((SMOLLM2, 30, 576, 16), (GPT2, 6, 768, 8))

BENCHMARK = Benchmark(
    cases=[
        Generate(shape, layers, d, batch, 32, 32, r, dtype)
        for shape, layers, d, r in SHAPES
        for dtype in ("float32", "bfloat16")
        for batch in (1, 16)
    ],
    quick=[Generate(GPT2, 6, 768, 1, 8, 8, 8, "float32")],
    smallest=Generate(SMOLLM2, 1, 16, 1, 2, 2, 2, "float32"),
    measure=timed(contenders, memory=False),
    goals=goals,
    axis="time / bare model",
)
