"""LoRA's arithmetic as pure functions on tensors. `reference` is the specification that every implementation is tested
against; it is also the one in use.
"""

from .reference import add_linear_update, linear_delta, merge_delta

__all__ = ["add_linear_update", "linear_delta", "merge_delta"]
