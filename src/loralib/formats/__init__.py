"""Adapters in files. Each format is one file here, with `detect`, `read` and `write`; none of them knows models."""

import os
from pathlib import Path
from types import ModuleType

from ..adapter import Adapter
from ..errors import FormatError
from . import peft

FORMATS: dict[str, ModuleType] = {"peft": peft}


def load(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter from `path`, whatever known format it is in. Never executes what a file contains.

    Raises `FormatError` when there is nothing, when the format is not known, or when the content is damaged, does not fit
    its own configuration or asks for something that cannot be represented.

    >>> import tempfile, torch, loralib as lora
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lora.save(lora.extract(model), folder)
    ...     lora.load(folder)
    Adapter(1 layer of rank 2, 32 parameters, 0 tensors beside)
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(f"{path} does not exist; give the path of a saved adapter.")
    for module in FORMATS.values():
        if module.detect(path):
            adapter: Adapter = module.read(path)
            return adapter
    raise FormatError(f"{path} holds no adapter in a known format ({', '.join(FORMATS)}): {peft.EXPECTED}.")


def save(adapter: Adapter, path: str | os.PathLike[str], format: str = "peft") -> None:
    """Write `adapter` to `path`. Each file appears whole or not at all.

    format: "peft", a folder with `adapter_config.json` and `adapter_model.safetensors`, which PEFT reads.
    Raises `FormatError` for an unknown format or an adapter that the format cannot hold, `OSError` (with the path) when the
    disk is full.
    """
    if format not in FORMATS:
        raise FormatError(f"format={format!r} is not known; choose one of {', '.join(FORMATS)}. Nothing was written.")
    FORMATS[format].write(adapter, Path(path))
