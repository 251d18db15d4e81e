"""Whether two adapters would interfere when they are combined: how far their updates of a layer point in one direction.

    cosine = ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖·‖ΔW_b‖)      in the Frobenius inner product, from the factors

Updates of cosine 0 add up without loss: ‖ΔW_a + ΔW_b‖² = ‖ΔW_a‖² + ‖ΔW_b‖². They may still read the same inputs or write the
same outputs, so that one changes what the other sees; `shared_inputs` and `shared_outputs` say how far.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.adapter import Adapter, check_adapter
from ..tensors import without_autocast
from .products import Product, paired


@dataclass(frozen=True)
class Overlap:
    """How two adapters' updates of one layer lie to each other.

    Attributes:
        cosine: ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖·‖ΔW_b‖), Frobenius; 0 where one of them is zero.
        shared_inputs: φ of the whole row spaces: 1 where the one of lower rank reads nothing but what the other reads.
        shared_outputs: φ of the whole column spaces: 1 where it writes nowhere else.
        norm_a: ‖ΔW_a‖_F.
        norm_b: ‖ΔW_b‖_F.

    Example:
        >>> found = lora.analysis.Overlap(cosine=-0.5, shared_inputs=1.0, shared_outputs=0.5, norm_a=2.0, norm_b=3.0)
        >>> found.inner
        -3.0
    """

    cosine: float
    shared_inputs: float
    shared_outputs: float
    norm_a: float
    norm_b: float

    @property
    def inner(self) -> float:
        """⟨ΔW_a, ΔW_b⟩."""
        return self.cosine * self.norm_a * self.norm_b


@without_autocast
def overlap(a: Adapter, b: Adapter) -> dict[str, Overlap]:
    """Measure how two adapters' updates of the layers that both adapt lie to each other. Of DoRA, s·B·A is compared.

    Args:
        a: The first adapter.
        b: The second one.

    Returns:
        The figures by layer, `name[i]` for slice i of a fused projection.

    Raises:
        TargetError: When the adapters share no layer.
        AlgebraError: When a shared layer has two shapes, or factors that are not finite.
        ArgumentError: When `a` or `b` is not an adapter.

    Example:
        >>> a, b = (lora.LoRAUpdate(torch.eye(4)[:1], torch.eye(6)[:, i : i + 1], lora_alpha=1) for i in (0, 1))
        >>> a, b = (lora.Adapter(lora.LoRAConfig(), {"proj": update}) for update in (a, b))
        >>> found = lora.analysis.overlap(a, b)["proj"]
        >>> abs(found.cosine), found.shared_inputs, found.shared_outputs
        (0.0, 1.0, 0.0)
    """
    check_adapter(a, "a")
    check_adapter(b, "b")
    return {name: _overlap(first, second) for name, first, second in paired(a, b)}


def _overlap(first: Product, second: Product) -> Overlap:
    U, S, Vh = first.svd()
    X, T, Yh = second.svd()
    outputs, inputs = U.t() @ X, Vh @ Yh.t()
    norm_a, norm_b = (float(torch.linalg.vector_norm(values)) for values in (S, T))
    inner = float((S[:, None] * outputs * inputs * T).sum())
    cosine = inner / (norm_a * norm_b) if norm_a * norm_b else 0.0
    return Overlap(max(-1.0, min(1.0, cosine)), _share(inputs), _share(outputs), norm_a, norm_b)


def _share(cosines: Tensor) -> float:
    """φ of two subspaces by the inner products of their bases; 0 where one is empty."""
    return min(1.0, float(cosines.square().sum()) / min(cosines.shape)) if cosines.numel() else 0.0


def total_cosine(overlaps: Mapping[str, Overlap]) -> float:
    """Compute the cosine of two adapters over all layers that both adapt, as if all ΔW were one vector.

    Args:
        overlaps: What `overlap` gave.

    Returns:
        Σ⟨ΔW_a, ΔW_b⟩ / √(Σ‖ΔW_a‖²·Σ‖ΔW_b‖²); 0 where one is zero in all layers.

    Example:
        >>> same, other = (lora.analysis.Overlap(cosine, 1.0, 1.0, 1.0, 1.0) for cosine in (1.0, 0.0))
        >>> round(lora.analysis.total_cosine({"q": same, "v": other}), 6)
        0.5
    """
    norms = math.hypot(*(found.norm_a for found in overlaps.values())) * math.hypot(
        *(found.norm_b for found in overlaps.values())
    )
    return math.fsum(found.inner for found in overlaps.values()) / norms if norms else 0.0
