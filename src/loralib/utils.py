"""The two functions where loralib 0.1 had them: `loralib.utils`."""

from .surgery.trainable import lora_state_dict, mark_only_lora_as_trainable

__all__ = ["lora_state_dict", "mark_only_lora_as_trainable"]
