"""LoRA layers, one kind a file, and their adoption in place."""

from ..architectures import PROJECTIONS
from .adoption import adopt, adopt_fitting, adoption_problem, eject, eject_problem, handler_of, is_linear, register_layer
from .attention import MultiheadAttentionLoRA, attention_problem, enter, leave
from .base import AdaptedLayer, LoRALayer, rank_is_excessive
from .conv_0_1 import Conv1d, Conv2d, Conv3d, ConvLoRA, rename_legacy_keys
from .embedding import Embedding
from .fusable import fused_away, guard_fusion, is_fusable, unguard_fusion
from .fused_linear import FusedLinearLoRA, MergedLinear, slice_widths
from .linear import Linear, LinearLoRA
from .projection import Projection
from .temporary_weight import original

__all__ = [
    "PROJECTIONS",
    "AdaptedLayer",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvLoRA",
    "Embedding",
    "FusedLinearLoRA",
    "Linear",
    "LinearLoRA",
    "LoRALayer",
    "MergedLinear",
    "MultiheadAttentionLoRA",
    "Projection",
    "adopt",
    "adopt_fitting",
    "adoption_problem",
    "attention_problem",
    "eject",
    "eject_problem",
    "enter",
    "fused_away",
    "guard_fusion",
    "handler_of",
    "is_fusable",
    "is_linear",
    "leave",
    "original",
    "rank_is_excessive",
    "register_layer",
    "rename_legacy_keys",
    "slice_widths",
    "unguard_fusion",
]
