"""The same numbers as `reference`, with fewer passes over the big tensors and less kept for the backward pass.

`linear` has the formulas, and `gemm` the few places where the order of a product or who computes it was worth measuring.
Not here: graphs that a compiler or `torch.func` traces, weights that are not plain tensors, autocast; `dispatch` sees to those.
"""

from .convolution import lora_convolution
from .embedding import add_embedding_update
from .linear import add_linear_update, lora_linear
from .merging import add_strips

__all__ = ["add_embedding_update", "add_linear_update", "add_strips", "lora_convolution", "lora_linear"]
