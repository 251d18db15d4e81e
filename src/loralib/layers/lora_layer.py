"""loralib 0.1's base class of LoRA layers: attributes, and what they may be."""

from torch import nn

from ..config import check_alpha, check_dropout, check_rank
from .dropout import Dropout, no_dropout


class LoRALayer:
    """The attributes that every LoRA layer has: loralib 0.1's base class, for custom layers and for `isinstance`.

    Args:
        r: The rank, 0 for none.
        lora_alpha: The numerator of the scaling.
        lora_dropout: The probability with which the update's input is dropped. The attribute of that name is a module, or
            without dropout a function, so that the layer has no submodules.
        merge_weights: Merge on `eval()`, unmerge on `train()`.

    Raises:
        ConfigError: When `r`, `lora_alpha` or `lora_dropout` is out of range.

    Example:
        >>> class MyLayer(nn.Module, lora.LoRALayer):
        ...     def __init__(self):
        ...         nn.Module.__init__(self)
        ...         lora.LoRALayer.__init__(self, r=4, lora_alpha=8, lora_dropout=0.1, merge_weights=False)
        >>> MyLayer().lora_dropout
        Dropout(p=0.1, inplace=False)
    """

    r: int = 0
    lora_alpha: float = 1
    lora_dropout: Dropout
    merged: bool = False
    merge_weights: bool = False

    def __init__(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool):
        r, lora_alpha = check_rank(r, zero=True), check_alpha(lora_alpha) if r else lora_alpha
        self.set_up(r, lora_alpha, check_dropout(lora_dropout), merge_weights)

    def set_up(self, r: int, lora_alpha: float, p: float, merge_weights: bool) -> None:
        """Set the attributes to values that were checked.

        Args:
            r: The rank.
            lora_alpha: The numerator of the scaling.
            p: The probability of dropout.
            merge_weights: Whether to merge on `eval()`.
        """
        vars(self).update(r=r, lora_alpha=lora_alpha, lora_dropout=no_dropout, merged=False, merge_weights=merge_weights)
        if p:
            self.lora_dropout = nn.Dropout(p)
