"""LoRA layers, one kind a file, and their adoption in place.

`__all__` is what programs use; the names imported as themselves are for the rest of this library.
"""

from ..architectures import PROJECTIONS as PROJECTIONS
from ..star_0_1 import F, List, Optional, math, nn, torch
from .adoption import adopt, adoption_problem, eject
from .adoption import adopt_fitting as adopt_fitting
from .adoption import eject_problem as eject_problem
from .attention import MultiheadAttentionLoRA
from .attention import attention_problem as attention_problem
from .attention import enter as enter
from .base import AdaptedLayer
from .base import rank_is_excessive as rank_is_excessive
from .conv_0_1 import Conv1d, Conv2d, Conv3d, ConvLoRA
from .conv_0_1 import rename_legacy_keys as rename_legacy_keys
from .embedding import Embedding
from .experts import ExpertsLoRA
from .experts import ExpertWeight as ExpertWeight
from .experts import ExpertWeightLoRA as ExpertWeightLoRA
from .experts import are_experts as are_experts
from .experts import enter_experts as enter_experts
from .experts import expert_weights as expert_weights
from .fusable import fused_away as fused_away
from .fusable import guard_fusion as guard_fusion
from .fusable import is_fusable as is_fusable
from .fusable import unguard_fusion as unguard_fusion
from .fused_linear import FusedLinearLoRA, MergedLinear
from .linear import Linear, LinearLoRA
from .loading import delta_of as delta_of
from .loading import relation as relation
from .lora_layer import LoRALayer
from .merging import RESIZED as RESIZED
from .owned_weight import OwnedWeight as OwnedWeight
from .owned_weight import Owner as Owner
from .owned_weight import leave as leave
from .projection import Projection as Projection
from .register import handler_of, register_layer
from .register import is_linear as is_linear
from .state_dicts import MergedStateDictWarning
from .state_dicts import baked_state_dict as baked_state_dict
from .state_dicts import quiet_state_dict as quiet_state_dict
from .temporary_weight import original as original

__all__ = [
    "AdaptedLayer",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvLoRA",
    "Embedding",
    "ExpertsLoRA",
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
    "adopt",
    "adoption_problem",
    "eject",
    "handler_of",
    "math",
    "nn",
    "register_layer",
    "torch",
]
