"""The two functions where loralib 0.1 had them: `loralib.utils`."""

from .layers import LoRALayer
from .star_0_1 import Dict, nn, torch
from .surgery.trainable import lora_state_dict, mark_only_lora_as_trainable

__all__ = ["Dict", "LoRALayer", "lora_state_dict", "mark_only_lora_as_trainable", "nn", "torch"]
