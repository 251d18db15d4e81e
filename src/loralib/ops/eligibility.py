"""Which computations an `autograd.Function` of ours can take over; plain torch computes the others."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

INPUT_NOT_KEPT = (
    "With a frozen lora_A the input is not kept, so the backward pass cannot be differentiated again; compute inside "
    '`with loralib.ops.use("reference")`.'
)


def ineligibility(*tensors: Tensor | None) -> str | None:
    """Why a function of ours cannot compute with these tensors here and now, or None."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func or forward-mode differentiation transforms the computation"
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_nested):
            return "not all tensors are plain ones"
    return None


_PLAIN = (Tensor, nn.Parameter)
