"""LoRA layers, one kind a file, and their adoption in place."""

from .adoption import adopt, adopt_fitting, adoption_problem, eject, eject_problem, is_linear, register_layer, treatment
from .attention import PROJECTIONS, MultiheadAttentionLoRA, Projection, attention_problem, enter, leave
from .base import AdaptedLayer, LoRALayer, rank_is_excessive
from .conv import Conv1d, Conv2d, Conv3d, ConvLoRA, rename_legacy_keys
from .embedding import Embedding
from .fused_linear import MergedLinear, MergedLinearLoRA, slice_widths
from .linear import Linear, LinearLoRA

__all__ = [
    "PROJECTIONS",
    "AdaptedLayer",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvLoRA",
    "Embedding",
    "Linear",
    "LinearLoRA",
    "LoRALayer",
    "MergedLinear",
    "MergedLinearLoRA",
    "MultiheadAttentionLoRA",
    "Projection",
    "adopt",
    "adopt_fitting",
    "adoption_problem",
    "attention_problem",
    "eject",
    "eject_problem",
    "enter",
    "is_linear",
    "leave",
    "rank_is_excessive",
    "register_layer",
    "rename_legacy_keys",
    "slice_widths",
    "treatment",
]
