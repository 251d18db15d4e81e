"""Attention with updates on some of its projections."""

import copy
from typing import Any

import torch
from torch import nn

import loralib as lora
from kinds import PROJECTIONS, fill


def attention_of(
    targets: tuple[str, ...] = (*PROJECTIONS, "out_proj"), e: int = 8, heads: int = 2, dtype=None, r: int = 2, **options
) -> tuple[Any, Any]:
    """An attention in a model, as it is and with updates on the `targets`."""
    layer = nn.MultiheadAttention(e, heads, **{"batch_first": True} | options)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.normal_(0, 1 if "bias" in name else e**-0.5)
    model = nn.ModuleDict({"a": layer.to(dtype)})
    plain = copy.deepcopy(model)
    lora.inject(model, lora.LoRAConfig(r=r, lora_alpha=3, target_modules=targets), dtype=dtype)
    return plain["a"], fill(model)["a"]
