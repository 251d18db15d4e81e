"""G19: a training step under torch.compile with dropout: a linear layer, and a small language model, against eager ones.

Llama's shape or one linear layer, random weights, LoRA of rank 8 on all linear layers with dropout 0.1, forward and backward
pass, gradients to the input included. PEFT compiled is what a compiler makes of the plain formula.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.goals import Benchmark, Goal, where, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.llm import LanguageModel, llama
from benchmarks.peers import FROZEN, PEFT

COMPILED, PEFT_COMPILED = "loralib, compiled", "PEFT, compiled"
OPTIONS: Mapping[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Compiled(Case):
    """layers: of a Llama of width d; 0 for one linear layer from d to d. backend: of torch.compile."""

    group_title = "{dtype}"
    case_title = "{layers} blocks of width {d}, {tokens} tokens"
    layers: int
    d: int
    tokens: int
    dtype: str
    backend: str = "inductor"

    @property
    def label(self) -> str:
        """One layer is no model of no blocks."""
        return super().label if self.layers else f"one layer {self.d} → {self.d}, {self.tokens} tokens"


def built(case: Compiled, device: str) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """The frozen model, and the number whose gradients are computed, of a model and its embedded input."""
    if case.layers:
        shape = LanguageModel(case.layers, case.d, 2048, 8, 1, case.tokens, 0.1, 1.0)
        labels = torch.randint(2048, (1, case.tokens), device=device)
        return llama(shape), lambda model, x: model(inputs_embeds=x, labels=labels, use_cache=False).loss
    return nn.Sequential(nn.Linear(case.d, case.d)), lambda model, x: model(x).sum()


def contenders(case: Compiled, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    base, loss = built(case, device)
    base = base.to(device, getattr(torch, case.dtype)).requires_grad_(False)
    ours = {name: peers.ours_on(lora, copy.deepcopy(base), **OPTIONS) for name in (OURS, COMPILED)}
    theirs = {name: peers.peft_on(copy.deepcopy(base), **OPTIONS) for name in (PEFT, PEFT_COMPILED)}
    models = {FROZEN: base, **theirs, **ours}
    x = torch.randn(1, case.tokens, case.d, device=device, dtype=getattr(torch, case.dtype), requires_grad=True)

    def step(model: nn.Module) -> Callable[[], None]:
        def run() -> None:
            loss(model, x).backward()
            model.zero_grad()
            x.grad = None

        return run

    torch._dynamo.reset()
    runs = {
        name: step(torch.compile(model.train(), backend=case.backend) if name in (COMPILED, PEFT_COMPILED) else model.train())
        for name, model in models.items()
    }
    return {name: Contender(run, models[name]) for name, run in runs.items()}


def goals(rows: list[Row]) -> list[Goal]:
    models = [row for row in rows if row["layers"]]
    eager = {(row["case"], row["dtype"]): row["milliseconds"] for row in where(models, contender=OURS)}
    over = [row["milliseconds"] / eager[row["case"], row["dtype"]] for row in where(models, contender=COMPILED)]
    return [
        Goal("G19", "time compiled over eager, a model, at worst", max(over, default=None), at_most=1.03),
        Goal("G19", "times faster than PEFT compiled, at worst", worst(rows, "speedup", [PEFT_COMPILED], min), at_least=1.0),
    ]


SIZES = ((0, 768, 2048), (4, 512, 512))

BENCHMARK = Benchmark(
    cases=[Compiled(*size, dtype) for dtype in ("float32", "bfloat16") for size in SIZES],
    quick=[Compiled(0, 256, 512, "float32")],
    smallest=Compiled(0, 8, 5, "float32", "aot_eager"),
    measure=timed(contenders, memory=False),
    goals=goals,
    axis="time / frozen layers, eager",
)
