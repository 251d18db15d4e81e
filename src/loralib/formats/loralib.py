"""Checkpoints of loralib 0.1: a state dict that `torch.save` wrote, whole or only `lora_state_dict` of it.

Such a file says neither lora_alpha nor r, so it makes an adapter only together with a model: see `load_legacy`.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FormatError
from .files import read_pickled

_WRAPPERS = ("model_state_dict", "state_dict", "model")
_DDP = "module."


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of the file `path`, by the names that the model has for them. Never executes what the file contains.

    A state dict inside a training checkpoint (`model_state_dict`, as 0.1's GPT-2 examples save it) is found, and the prefix
    that DistributedDataParallel leaves is taken off. Raises `FormatError` when the file is none of this.
    """
    content = read_pickled(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return _named_tensors(path, content)


def _named_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise FormatError(f"{path} holds a {type(content).__name__}, not a state dict.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise FormatError(f"{path} is no state dict: its entry {name!r} is a {type(value).__name__}, not a tensor.")
    if not all(name.startswith(_DDP) for name in content):
        return content
    return {name.removeprefix(_DDP): tensor for name, tensor in content.items()}
