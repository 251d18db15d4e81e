"""Which computations an `autograd.Function` of ours can take over, plain torch computes the others; and which nobody can."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..errors import LayerError

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


class NoValuesError(LayerError):
    """Tensors that were to be multiplied, some of which are on the meta device."""


def check_values(*tensors: Tensor | None) -> None:
    """`NoValuesError` when some of the tensors are on the meta device and some are not: torch's products do not look, and would
    give what happens to be in memory."""
    found = [tensor.is_meta for tensor in tensors if isinstance(tensor, Tensor)]
    if any(found) and not all(found):
        raise NoValuesError(f"Some of the input, the weight and the factors hold no values, and some do: {ON_META}.")


ON_META = (
    "what is on the meta device has yet to be loaded (load_state_dict with assign=True, or to_empty first); then attach the "
    "adapter again, or inject once the model is loaded"
)
_PLAIN = (Tensor, nn.Parameter)
