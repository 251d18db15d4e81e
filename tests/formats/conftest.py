"""PEFT's folders, made by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0"]}


def folder_with(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps(dict(config)))
    return folder


def factors(A: float = 1, B: float = 1, layer: str = "0", infix: str = "") -> dict[str, Tensor]:
    return {f"{layer}.lora_A{infix}.weight": A * torch.ones(2, 6), f"{layer}.lora_B{infix}.weight": B * torch.ones(5, 2)}
