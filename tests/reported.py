"""Adapters whose directions are known, and the numbers that an analysis of them has."""

from collections.abc import Sequence
from pathlib import Path

import torch

import loralib as lora
from loralib.recipes.learned.measured import Measured, measure
from loralib.recipes.learned.subjects import Subject

NAMES = [f"encoder.layer.{i}.attention.{kind}" for i in (0, 1, 10) for kind in ("query", "value")]


def random_adapter(r: int, seed: int, names: Sequence[str] = NAMES, size: int = 24) -> lora.Adapter:
    """Random factors, the same for the same seed."""
    draw = torch.Generator().manual_seed(seed)
    layers = {
        name: lora.LoRAUpdate(torch.randn(r, size, generator=draw), torch.randn(size, r, generator=draw), lora_alpha=r)
        for name in names
    }
    return lora.Adapter(lora.LoRAConfig(r=r), layers)


def along(
    *directions: int, size: int = 8, strength: Sequence[float] = (4.0, 2.0, 1.0), name: str = "layer.0.q"
) -> lora.Adapter:
    """ΔW of one layer: diagonal, with these directions, the first one the strongest."""
    rows = torch.eye(size)[list(directions)]
    return lora.Adapter(
        lora.LoRAConfig(), {name: lora.LoRAUpdate(rows, rows.t() * torch.tensor(strength[: len(rows)]), lora_alpha=len(rows))}
    )


def analysed(*adapters: lora.Adapter, names: Sequence[str] = ("one", "two", "three"), **how: object) -> Measured:
    """The numbers of adapters that come from no files."""
    found = [Subject(name, Path(name), adapter) for name, adapter in zip(names, adapters, strict=False)]
    return measure(found, **how)  # type: ignore[arg-type]
