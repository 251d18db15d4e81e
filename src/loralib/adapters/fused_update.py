"""The update of a fused projection, such as query, key and value in one matrix."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Self

import torch
from torch import Tensor

from .. import ops
from .layout import Layout
from .updates import LoRAUpdate, Product


@dataclass(frozen=True, eq=False)
class FusedUpdate(LoRAUpdate):
    """The updates of a fused projection, such as query, key and value in one matrix: one for each enabled slice.

    Args:
        A: The first factors of the n enabled slices, stacked: (n·r, in).
        B: The second factors: (sum of the enabled widths, r).
        lora_alpha: The numerator of the scaling.
        use_rslora: Scale by lora_alpha / √r.
        magnitude: Not supported: None.
        enable_lora: Which slices of the output have an update.
        widths: The widths of all slices.

    Example:
        >>> A, B = torch.ones(2 * 2, 6), torch.ones(4 + 4, 2)
        >>> update = lora.FusedUpdate(A, B, lora_alpha=2, enable_lora=(True, False, True), widths=(4, 4, 4))
        >>> update.r, update.delta().shape
        (2, torch.Size([12, 6]))
    """

    kind: ClassVar[str] = "fused"
    enable_lora: tuple[bool, ...] = ()
    widths: tuple[int, ...] = ()

    def _problem(self) -> str | None:
        A, B = self.A, self.B
        if min(self.widths, default=1) < min(1, sum(self.widths)):
            return f"slices are at least 1 wide, not {self.widths}"
        if len(self.enable_lora) != len(self.widths) or not any(self.enable_lora):
            return f"enable_lora={self.enable_lora} must name at least one of the {len(self.widths)} slices"
        enabled = sum(width for width, on in zip(self.widths, self.enable_lora, strict=True) if on)
        if A.dim() != 2 or B.dim() != 2 or len(B) != enabled or not 0 < len(A) == B.shape[1] * sum(self.enable_lora):
            return f"expected (n·r, in) and ({enabled}, r) for the n={sum(self.enable_lora)} enabled of {self.widths}"
        return None

    @property
    def r(self) -> int:
        """The rank of each slice's product."""
        return self.B.shape[1]

    may_be_dora: ClassVar[bool] = False

    @property
    def slices(self) -> ops.Slices:
        """The slices of the output."""
        return ops.Slices(self.widths, self.enable_lora)

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """(Σ widths, in)."""
        return (sum(self.widths), self.A.shape[1])

    def _product(self) -> Tensor:
        return ops.linear_delta(self.A, self.B, self.scaling, self.slices)

    def strips(self, layout: Layout) -> list[ops.Strip]:
        """One for each enabled slice."""
        starts = [start for start, on in zip(accumulate(self.widths, initial=0), self.enable_lora, strict=False) if on]
        placed = zip(starts, self.products(), strict=True)
        if layout.transposed:
            return [ops.Strip(0, start, A.t(), B.t()) for start, (B, A) in placed]
        return [ops.Strip(start, 0, B, A) for start, (B, A) in placed]

    def products(self) -> list[Product]:
        """One for each enabled slice."""
        return list(zip(self.B.split(self.slices.chosen), self.A.split(self.r), strict=True))

    def with_products(self, products: Sequence[Product], lora_alpha: float, use_rslora: bool) -> Self:
        """An update of the same slices, one product for each that is enabled."""
        A, B = torch.cat([A for _, A in products]), torch.cat([B for B, _ in products])
        return dataclasses.replace(self, A=A, B=B, lora_alpha=lora_alpha, use_rslora=use_rslora)

    def plain(self) -> LoRAUpdate:
        """The same ΔW as one update of rank n·r, whose B is zero wherever a slice does not see a first factor.

        >>> A, B = torch.ones(2 * 2, 6), torch.ones(4 + 4, 2)
        >>> update = FusedUpdate(A, B, lora_alpha=2, enable_lora=(True, False, True), widths=(4, 4, 4))
        >>> update.plain().r, torch.equal(update.plain().delta(), update.delta())
        (4, True)
        """
        B, n = ops.block_diagonal(self.B, self.slices), sum(self.enable_lora)
        lora_alpha = self.lora_alpha * (n**0.5 if self.use_rslora else n)
        return LoRAUpdate(self.A, B, lora_alpha, self.use_rslora)

    def like_plain(self, update: LoRAUpdate) -> "FusedUpdate | None":
        """The update of this kind, with slices like this one's, whose `plain` is `update`.

        Args:
            update: An update over the full width.

        Returns:
            The fused update; None where there is none.

        Example:
            >>> A, B = torch.ones(2 * 2, 6), torch.ones(4 + 4, 2)
            >>> own = lora.FusedUpdate(A, B, lora_alpha=2, enable_lora=(True, False, True), widths=(4, 4, 4))
            >>> torch.equal(own.like_plain(own.plain()).B, own.B)
            True
        """
        n = sum(self.enable_lora)
        is_matrix = type(update) is LoRAUpdate and update.A.dim() == update.B.dim() == 2
        if not is_matrix or update.r % n or len(update.B) != sum(self.widths):
            return None
        r, blocks, enabled = update.r // n, [], 0
        for block, on in zip(update.B.split(self.widths), self.enable_lora, strict=True):
            if on:
                blocks.append(block[:, enabled * r : (enabled + 1) * r])
                enabled += 1
        lora_alpha = update.lora_alpha / (n**0.5 if update.use_rslora else n)
        found = dataclasses.replace(self, A=update.A, B=torch.cat(blocks), lora_alpha=lora_alpha, use_rslora=update.use_rslora)
        if not torch.equal(found.plain().B, update.B):
            return None
        for exact in (self.lora_alpha, round(lora_alpha, 9)):  # a quotient need not be what was multiplied
            if exact > 0 and (written := dataclasses.replace(found, lora_alpha=exact)).plain().lora_alpha == update.lora_alpha:
                return written
        return found
