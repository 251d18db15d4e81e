"""LoRA layers, one kind a file, and their adoption in place."""

from ..architectures import PROJECTIONS
from ..star_0_1 import F, List, Optional, math, nn, torch
from .adoption import adopt, adopt_fitting, adoption_problem, eject, eject_problem, handler_of, is_linear, register_layer
from .attention import MultiheadAttentionLoRA, attention_problem, enter, leave
from .base import AdaptedLayer, LoRALayer, rank_is_excessive
from .conv_0_1 import Conv1d, Conv2d, Conv3d, ConvLoRA, rename_legacy_keys
from .embedding import Embedding
from .fused_linear import FusedLinearLoRA, MergedLinear, slice_widths
from .linear import Linear, LinearLoRA
from .projection import Projection

__all__ = [
    "PROJECTIONS",
    "AdaptedLayer",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvLoRA",
    "Embedding",
    "F",
    "FusedLinearLoRA",
    "Linear",
    "LinearLoRA",
    "List",
    "LoRALayer",
    "MergedLinear",
    "MultiheadAttentionLoRA",
    "Optional",
    "Projection",
    "adopt",
    "adopt_fitting",
    "adoption_problem",
    "attention_problem",
    "eject",
    "eject_problem",
    "enter",
    "handler_of",
    "is_linear",
    "leave",
    "math",
    "nn",
    "rank_is_excessive",
    "register_layer",
    "rename_legacy_keys",
    "slice_widths",
    "torch",
]
