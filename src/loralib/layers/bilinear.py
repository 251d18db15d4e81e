"""LoRA on bilinear layers: y_o = x₁ᵀ·W_o·x₂ + b_o, with ΔW = s·B·A for A (r, in1, in2) and B (out, r): each of the r
components of the update is a bilinear form of its own.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .base import AdaptedLayer


class BilinearLoRA(AdaptedLayer):
    """LoRA for `nn.Bilinear`. `lora_dropout` acts on the first input. A subclass with a forward of its own computes
    with that and the effective weight, so that `lora_dropout` cannot act in it."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """y (..., out) for inputs (..., in1) and (..., in2)."""
        if not self.acts or type(self).base_class.forward is not nn.Bilinear.forward:
            return super().forward(*args, **kwargs)  # type: ignore[no-any-return]
        ops.check_values(*args, self.lora_A, self.lora_B, self.weight if self._carried_forward is None else None)
        y: Tensor = self.base_forward(*args, **kwargs)
        input1, input2 = (*args, *(kwargs[name] for name in ("input1", "input2") if name in kwargs))
        t = F.bilinear(self.lora_dropout(input1), input2, self.lora_A.to(input1.dtype))  # (..., r)
        return ops.add_expanded(y, t, self.lora_B, self.scaling)

    @classmethod
    def layer_problem(cls, layer: nn.Module, lora_dropout: float) -> str | None:
        """Why a plain `layer` cannot be adapted, or None."""
        return None if type(layer).forward is nn.Bilinear.forward else cls.problem_of_weights(layer, lora_dropout)

    @classmethod
    def factor_shapes(cls, layer: nn.Module, r: int, **structure: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A (r, in1, in2), B (out, r)."""
        assert isinstance(layer, nn.Bilinear)
        return (r, layer.in1_features, layer.in2_features), (layer.out_features, r)
