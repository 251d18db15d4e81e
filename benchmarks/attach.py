"""G11: inject into 500 linear layers and into a 7B-shaped Llama on the meta device, attach a saved adapter; against PEFT.

Both put updates on the same layers of a fresh model and freeze the rest. The reference is ours.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.goals import Benchmark, Goal, where, worst
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import PEFT

LOW_MEMORY = "PEFT, low_cpu_mem_usage"


@dataclass(frozen=True)
class Attach(Case):
    """What is done to which model, of how many blocks of which width."""

    group_title = "{action}"
    case_title = "{model}, {blocks} blocks of width {d}"
    action: str
    model: str
    blocks: int
    d: int


def attention(case: Attach) -> nn.Module:
    """Blocks of four linear layers; their weights hold whatever was in memory."""
    return nn.ModuleList(
        nn.ModuleDict({f"{x}_proj": nn.utils.skip_init(nn.Linear, case.d, case.d) for x in "qkvo"}) for _ in range(case.blocks)
    )


def llama(case: Attach) -> nn.Module:
    """A Llama on the meta device."""
    sizes: dict[str, Any] = {"hidden_size": case.d, "intermediate_size": case.d * 43 // 16, "num_hidden_layers": case.blocks}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=max(1, case.d // 128), vocab_size=32000))


MODELS = {"linear layers": attention, "meta Llama": llama}


def inject_ours(lora: ModuleType, model: nn.Module, config: Mapping[str, Any]) -> None:
    lora.inject(model, lora.LoRAConfig(**config))
    lora.mark_only_lora_as_trainable(model)


def attach_ours(lora: ModuleType, model: nn.Module, folder: str) -> None:
    lora.attach(model, lora.load(folder))
    lora.mark_only_lora_as_trainable(model)


def contenders(case: Attach, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    projections = [
        f"{x}_proj" for x in ("qkvo" if case.model == "linear layers" else ("q", "k", "v", "o", "gate", "up", "down"))
    ]
    config: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": projections}

    def fresh() -> tuple[nn.Module]:
        return (MODELS[case.model](case).to(device if case.model == "linear layers" else "meta"),)

    if case.action == "inject":
        ways: dict[str, Callable[[nn.Module], object]] = {
            OURS: lambda model: inject_ours(lora, model, config),
            PEFT: lambda model: peft.get_peft_model(model, peft.LoraConfig(**config)),
            LOW_MEMORY: lambda model: peft.get_peft_model(model, peft.LoraConfig(**config), low_cpu_mem_usage=True),
        }
    else:
        (adapted,) = fresh()
        inject_ours(lora, adapted, config)
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder)
        lora.save(lora.extract(adapted), folder)
        ways = {
            OURS: lambda model: attach_ours(lora, model, folder),
            PEFT: lambda model: peft.PeftModel.from_pretrained(model, folder),
            LOW_MEMORY: lambda model: peft.PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=True),
        }
    return {name: Contender(run, prepare=fresh) for name, run in ways.items()}


def goals(rows: list[Row]) -> list[Goal]:
    found = []
    for claim in ("inject", "attach"):
        some = where(rows, action=claim)
        found.append(
            Goal("G11", f"{claim}: times faster than PEFT, at worst", worst(some, "speedup", [PEFT], min), at_least=10)
        )
        found.append(Goal("", f"{claim}: than {LOW_MEMORY}, at worst", worst(some, "speedup", [LOW_MEMORY], min)))
    return found


BENCHMARK = Benchmark(
    cases=[
        Attach("inject", "linear layers", 125, 256),
        Attach("inject", "meta Llama", 32, 4096),
        Attach("attach", "linear layers", 125, 256),
    ],
    quick=[
        Attach("inject", "linear layers", 125, 64),
        Attach("inject", "meta Llama", 32, 4096),
        Attach("attach", "linear layers", 125, 64),
    ],
    smallest=Attach("attach", "linear layers", 2, 8),
    measure=timed(contenders, memory=False),
    goals=goals,
    axis="time / ours",
)
