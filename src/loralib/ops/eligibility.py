"""Where an `autograd.Function` of one's own cannot take part, and plain torch has to compute."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

INPUT_NOT_KEPT = (
    "With a frozen lora_A the input is not kept, so the backward pass cannot be differentiated again; compute inside "
    '`with loralib.ops.use("reference")`.'
)


def obstacle(*tensors: Tensor | None) -> str | None:
    """Why a function of one's own cannot compute with these tensors here and now, or None."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func or forward-mode differentiation transforms the computation"
    if any(type(tensor) not in (Tensor, nn.Parameter) or tensor.is_nested for tensor in tensors if tensor is not None):
        return "not all tensors are plain ones"
    return None
