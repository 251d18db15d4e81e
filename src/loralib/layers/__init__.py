"""LoRA layers, one kind a file, and their adoption in place."""

from .adoption import adapted_class, adopt, adoption_problem, eject, eject_problem
from .base import AdaptedLayer, LoRALayer
from .linear import Linear

__all__ = [
    "AdaptedLayer",
    "Linear",
    "LoRALayer",
    "adapted_class",
    "adopt",
    "adoption_problem",
    "eject",
    "eject_problem",
]
