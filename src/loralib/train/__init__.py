"""LoRA in Hugging Face's Trainer: adapter-only checkpoints, resuming, clean interruption, progress."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trainer import AdapterTrainer

__all__ = ["AdapterTrainer"]


def __getattr__(name: str) -> Any:
    """`AdapterTrainer`, which loads transformers, when it is asked for."""
    if name in __all__:
        return getattr(import_module(".trainer", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
