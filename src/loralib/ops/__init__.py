"""LoRA's arithmetic as pure functions on tensors. `reference` is the specification that every implementation is tested
against; it is also the one in use.
"""

from .reference import (
    add_convolution_update,
    add_embedding_update,
    add_expanded,
    add_linear_update,
    add_merged_linear_update,
    linear_delta,
    merge_delta,
    merged_linear_delta,
)

__all__ = [
    "add_convolution_update",
    "add_embedding_update",
    "add_expanded",
    "add_linear_update",
    "add_merged_linear_update",
    "linear_delta",
    "merge_delta",
    "merged_linear_delta",
]
