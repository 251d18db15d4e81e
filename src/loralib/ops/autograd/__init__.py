"""The same numbers as `reference`, with fewer passes over the big tensors and less kept for the backward pass.

`linear` has the formulas, and `products` the few places where the order of a product or who computes it was worth measuring.
Not here: graphs that a compiler or `torch.func` traces, and weights that are no plain tensors; `reference` serves those.
"""

from .convolution import lora_convolution
from .embedding import add_embedding_update
from .linear import Slices, add_linear_update, lora_linear
from .merging import merge_linear

__all__ = [
    "Slices",
    "add_embedding_update",
    "add_linear_update",
    "lora_convolution",
    "lora_linear",
    "merge_linear",
]
