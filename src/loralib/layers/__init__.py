"""LoRA layers, one kind a file, and their adoption in place."""

from ..architectures import PROJECTIONS
from ..star_0_1 import F, List, Optional, math, nn, torch
from .adoption import adopt, adopt_fitting, adoption_problem, eject, eject_problem, handler_of, is_linear, register_layer
from .attention import MultiheadAttentionLoRA, attention_problem, enter, leave
from .base import AdaptedLayer, rank_is_excessive
from .conv_0_1 import Conv1d, Conv2d, Conv3d, ConvLoRA, rename_legacy_keys
from .embedding import Embedding
from .fusable import fused_away, guard_fusion, is_fusable, unguard_fusion
from .fused_linear import FusedLinearLoRA, MergedLinear, slice_widths
from .linear import Linear, LinearLoRA
from .loading import delta_of, relation
from .lora_layer import LoRALayer
from .merging import RESIZED
from .projection import Projection
from .state_dicts import MergedStateDictWarning, baked_state_dict, quiet_state_dict
from .temporary_weight import original

__all__ = [
    "PROJECTIONS",
    "RESIZED",
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
    "MergedStateDictWarning",
    "MultiheadAttentionLoRA",
    "Optional",
    "Projection",
    "adopt",
    "adopt_fitting",
    "adoption_problem",
    "attention_problem",
    "baked_state_dict",
    "delta_of",
    "eject",
    "eject_problem",
    "enter",
    "fused_away",
    "guard_fusion",
    "handler_of",
    "is_fusable",
    "is_linear",
    "leave",
    "math",
    "nn",
    "original",
    "quiet_state_dict",
    "rank_is_excessive",
    "register_layer",
    "relation",
    "rename_legacy_keys",
    "slice_widths",
    "torch",
    "unguard_fusion",
]
