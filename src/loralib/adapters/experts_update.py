"""The update of the weights of experts, which a mixture keeps in one 3-D tensor."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from .. import ops
from ..choices import Factor
from .layout import Layout
from .updates import LoRAUpdate, Product


@dataclass(frozen=True, eq=False)
class ExpertsUpdate(LoRAUpdate):
    """The updates of E experts, a product each: ΔW[e] = s·B[e]·A[e].

    One of the two factors may be shared by all experts; its first dimension is then 1.

    Args:
        A: The first factors, (E, r, in) or (1, r, in).
        B: The second factors, (E, out, r) or (1, out, r).
        lora_alpha: The numerator of the scaling.
        use_rslora: Scale by lora_alpha / √r.
        magnitude: Not supported: None.

    Example:
        >>> update = lora.ExpertsUpdate(torch.ones(4, 2, 6), torch.ones(4, 8, 2), lora_alpha=2)
        >>> update.r, update.delta().shape
        (2, torch.Size([4, 8, 6]))
    """

    kind: ClassVar[str] = "experts"
    may_be_dora: ClassVar[bool] = False

    def _problem(self) -> str | None:
        A, B = self.A, self.B
        fits = A.dim() == B.dim() == 3 and 0 < A.shape[1] == B.shape[2]
        if fits and len(A) and len(B) and (len(A) == len(B) or 1 in (len(A), len(B))):
            return None
        return "expected (E, r, in) and (E, out, r) with the same r > 0 and the same E, or 1 for a factor that experts share"

    @property
    def r(self) -> int:
        """The rank of each expert's product."""
        return self.A.shape[1]

    def structure(self) -> tuple[object, ...]:
        """What two updates must have in common to be added: the weight that they are for."""
        return (type(self), *self.canonical_shape)

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return max(len(self.A), len(self.B))

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """(E, out, in)."""
        return (self.experts, self.B.shape[1], self.A.shape[2])

    @property
    def shared(self) -> Factor | None:
        """The factor that all experts share."""
        return None if len(self.A) == len(self.B) else "A" if len(self.A) == 1 else "B"

    def _product(self) -> Tensor:
        wide = torch.promote_types(torch.promote_types(self.A.dtype, self.B.dtype), torch.float32)
        return torch.matmul(self.B.to(wide), self.A.to(wide)) * self.scaling

    def strips(self, layout: Layout) -> list[ops.Strip]:
        """One for each expert, one below the other."""
        stored = [(A.t(), B.t()) for B, A in self.products()] if layout.transposed else self.products()
        return [ops.Strip(i * len(L), 0, L, R) for i, (L, R) in enumerate(stored)]

    def as_matrix(self, W: Tensor) -> Tensor:
        """The rows of all experts' matrices, one below the other."""
        return W.reshape(-1, W.shape[-1])

    def products(self) -> list[Product]:
        """One for each expert."""
        E = self.experts
        return list(zip(self.B.expand(E, -1, -1).unbind(0), self.A.expand(E, -1, -1).unbind(0), strict=True))

    def with_products(self, products: Sequence[Product], lora_alpha: float, use_rslora: bool) -> Self:
        """An update of as many experts, one product for each."""
        A, B = torch.stack([A for _, A in products]), torch.stack([B for B, _ in products])
        return dataclasses.replace(self, A=A, B=B, lora_alpha=lora_alpha, use_rslora=use_rslora)
