"""The scaling in diffusers' files: in B, where no reader can miss it, with a note for this library of what it was.

B' = s·B, and lora_alpha' = r. The note, `loralib_scaling` in the metadata, gives lora_alpha back where B'/s is B to the bit,
which is where s is a power of two; whoever does not know it computes with the same ΔW.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..adapters.updates import LoRAUpdate
from ..errors import ConfigError, FormatError

_NOTE = "loralib_scaling"


def into_b(update: LoRAUpdate) -> LoRAUpdate:
    """The same ΔW with scaling 1. The factors keep their dtype where it holds s·B exactly, and are at least float32 elsewhere.

    >>> update = into_b(LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), lora_alpha=5))
    >>> update.scaling, update.B[0]
    (1.0, tensor([2.5000, 2.5000]))
    """
    exact = update.B.double() * update.scaling
    A, B = update.A, exact.to(update.B.dtype)
    if not torch.equal(B.double(), exact):
        wide = torch.promote_types(B.dtype, torch.float32)
        A, B = A.to(torch.promote_types(A.dtype, wide)), exact.to(wide)  # one dtype for both, which PEFT wants
    return dataclasses.replace(update, A=A, B=B, lora_alpha=update.r, use_rslora=False)


def _out_of_b(update: LoRAUpdate, lora_alpha: float, use_rslora: bool) -> LoRAUpdate:
    """The same ΔW with this lora_alpha, where it can be written so to the bit; else as it is."""
    found = dataclasses.replace(update, lora_alpha=lora_alpha, use_rslora=use_rslora)
    if math.frexp(found.scaling)[0] != 0.5:
        return update
    exact = update.B.double() / found.scaling
    B = exact.to(update.B.dtype)
    return dataclasses.replace(found, B=B) if torch.equal(B.double(), exact) else update


def note(given: Mapping[str, LoRAUpdate], written: Mapping[str, LoRAUpdate]) -> dict[str, str]:
    """The metadata that say what the lora_alpha of the updates was, where it can be given back."""
    scalings = {
        name: [update.lora_alpha, update.use_rslora]
        for name, update in sorted(given.items())
        if (update.lora_alpha, update.use_rslora) != (update.r, False)
        and _out_of_b(written[name], update.lora_alpha, update.use_rslora) == update
    }
    return {_NOTE: json.dumps(scalings)} if scalings else {}


def restored(layers: Mapping[str, LoRAUpdate], metadata: Mapping[str, str], path: Path) -> dict[str, LoRAUpdate]:
    """The updates with the lora_alpha that the metadata note; `FormatError` for a note that is damaged."""
    try:
        scalings: Any = json.loads(metadata.get(_NOTE, "{}"))
        values = {name: (alpha, bool(rslora)) for name, (alpha, rslora) in scalings.items()}
        return {name: _out_of_b(update, *values[name]) if name in values else update for name, update in layers.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, ConfigError) as error:
        raise FormatError(f"{path}: {_NOTE} in the metadata is damaged ({error}).") from None
