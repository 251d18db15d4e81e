"""What a run costs: parameters, memory, and the processor's means."""

import resource
import sys
from collections.abc import Mapping

import torch
from torch import nn

from .. import quant
from ..surgery.survey import Survey
from ..surgery.trainable import factor_names


def emulates_bf16() -> bool:
    """Whether bfloat16 products are emulated here, ten times as slow as float32's: on an x86 processor without AVX-512."""
    return not torch.accelerator.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2"


def count_parameters(model: nn.Module) -> dict[str, int]:
    """How many parameters are trained, how many of them are LoRA factors, and how many the base model has."""
    read = Survey(model)
    own = factor_names(read)
    factors = sum({id(p): p.numel() for name, p in read.parameters.items() if name in own}.values())
    return {
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "lora": factors,
        "total": sum(map(quant.count, model.parameters())) - factors,
    }


def everything(counts: Mapping[str, int]) -> int:
    """All parameters: those of the base model, and what LoRA or a prefix adds."""
    return counts["total"] + counts["lora"] + counts.get("prefix", 0)


def share(counts: Mapping[str, int]) -> float:
    """The fraction of all parameters, added ones included, that is trained: never more than 1.

    >>> share({"trained": 30, "lora": 20, "total": 100})
    0.25
    """
    return counts["trained"] / (everything(counts) or 1)


def peak_memory() -> int:
    """Bytes: of the GPU's memory where there is one, else of the process's memory, at its peak so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
