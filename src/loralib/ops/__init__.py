"""LoRA's arithmetic as pure functions on tensors: `reference` is the specification, `dispatch` chooses who computes.

with loralib.ops.use("reference"):
    ...
"""

import torch

from . import measured
from .autograd.merging import add_to_block, breaks_of, one_thread, row_blocks, single_threads
from .dispatch import (
    IMPLEMENTATIONS,
    add_embedding_update,
    add_expanded,
    add_linear_update,
    add_strips,
    loops_over_experts,
    lora_convolution,
    lora_linear,
    use,
)
from .eligibility import ON_META, NoValuesError, check_values
from .experts import lora_experts
from .reference import (
    Geometry,
    Slices,
    Strip,
    add_pointwise,
    block_diagonal,
    convolve,
    linear_delta,
    reshaped_sum,
)

__all__ = [
    "IMPLEMENTATIONS",
    "ON_META",
    "Geometry",
    "NoValuesError",
    "Slices",
    "Strip",
    "add_embedding_update",
    "add_expanded",
    "add_linear_update",
    "add_pointwise",
    "add_strips",
    "add_to_block",
    "block_diagonal",
    "breaks_of",
    "check_values",
    "convolve",
    "linear_delta",
    "loops_over_experts",
    "lora_convolution",
    "lora_experts",
    "lora_linear",
    "measured",
    "one_thread",
    "reshaped_sum",
    "row_blocks",
    "single_threads",
    "use",
]

for _name in (
    *("lora_linear", "add_linear_update", "add_embedding_update", "lora_convolution"),
    *("add_expanded", "add_pointwise", "convolve", "reshaped_sum"),
):
    torch.fx.wrap(_name)  # one node of a graph that torch.fx traces, which then computes as the layer does
