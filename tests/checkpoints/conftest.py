"""A small base model in files, and an adapter for it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import loralib as lora
from loralib.adapters.config_of import described


def simple(tmp_path: Path, shape: tuple[int, int] = (3, 4), **config) -> tuple[Path, lora.Adapter]:
    """A base with one weight, named with a prefix, and an adapter. config: its `config.json`."""
    base = tmp_path / "base"
    base.mkdir()
    save_file({"x.proj.weight": torch.randn(shape)}, base / "model.safetensors")
    if config:
        (base / "config.json").write_text(json.dumps(config))
    update = lora.LoRAUpdate(torch.randn(2, 4), torch.randn(3, 2), 4)
    return base, lora.Adapter(described(lora.LoRAConfig(), {"proj": update}), {"proj": update})
