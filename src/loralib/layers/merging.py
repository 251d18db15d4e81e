"""Merging one layer's update into its weight, and back bit for bit.

`merge` replaces the Parameter temporarily by W' = `effective_weight(W)`, computed in float32 and rounded once; `unmerge`
restores the same object. A merged layer computes as the plain one does.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from .. import tensors
from ..errors import LayerError
from .temporary_weight import TemporaryWeights


class Mergeable(TemporaryWeights):
    """A layer with an update that can be merged into its Parameter `weight`."""

    weight: nn.Parameter
    has_update: bool = False
    merged: bool = False
    merge_weights: bool = False
    disabled: bool = False

    def effective_weight(self, W: Tensor) -> Tensor:
        """The weight with which the base layer would compute what this layer computes; `W` is the base's weight."""
        raise NotImplementedError

    @property
    def acts(self) -> bool:
        """Whether the forward pass has an update to add to what the base layer computes."""
        return self.has_update and not self.merged and not self.disabled

    @property
    def pristine_weight(self) -> nn.Parameter:
        """The base's own weight, which is not the one in place while the layer is merged."""
        return self.original("weight")

    def merge_problem(self) -> str | None:
        """Why the weight cannot be merged, or None."""
        if self.disabled:
            return "its update is disabled; merge outside the `disabled` block"
        return weight_problem(self._parameters.get("weight"))

    def merge(self) -> None:
        """Compute with W' = `effective_weight(W)` from now on. Nothing happens to a merged layer.

        Raises:
            LayerError: When the weight is sharded, quantized or computed by a parametrization.
        """
        if self.merged or not self.has_update:
            return
        if problem := self.merge_problem():
            raise LayerError(f"{type(self).__name__} cannot be merged: {problem}. Nothing was changed.")
        self.merge_again()
        self.merged = True

    def merge_again(self) -> None:
        """Replace the weight by the effective weight of the original."""
        with torch.inference_mode(False), torch.no_grad():
            self.replace_temporarily("weight", self.effective_weight(self.original("weight")))

    def unmerge(self) -> None:
        """Restore the Parameter object that `merge` replaced. Nothing happens to an unmerged layer."""
        if self.merged:
            self.restore("weight")
            self.merged = False

    def keep_merged(self) -> None:
        """Make the merged weight the layer's own; the original is forgotten."""
        self.keep_replacement("weight")
        self.merged = False

    @contextmanager
    def unmerged(self) -> Iterator[None]:
        """Context manager: the pristine weight is in its place inside the block; a merged layer is merged again after it."""
        was_merged = self.merged
        if was_merged:
            self.restore("weight")
            self.merged = False
        try:
            yield
        finally:
            if was_merged:
                self.merge()

    def originals(self) -> AbstractContextManager[None]:
        """`unmerged`: what acts on the pristine weight may change the factors too, so the layer is merged again."""
        return self.unmerged()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; with `merge_weights`, merge when it is evaluation and unmerge when it is training (inside a
        `disabled` block, as soon as it ends)."""
        if self.merge_weights and not self.disabled:
            (self.unmerge if mode else self.merge)()
        super().train(mode)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickled state; one of loralib 0.1's layers, which could be pickled with dropout, becomes one of ours."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "lora_A" in self._parameters and not self.has_update:
            self.has_update = True
            if self.merged:  # by addition
                self.merged, W = False, self.weight
                with torch.no_grad():
                    delta = self.effective_weight(torch.zeros_like(W, dtype=torch.promote_types(W.dtype, torch.float32)))
                    W.copy_(W - delta)
                self.merge()


def weight_problem(W: Tensor | None) -> str | None:
    """Why `W` cannot be replaced by another weight, or None."""
    match tensors.kind(W):
        case "missing":
            return "its weight is no Parameter of the layer (a parametrization or weight norm computes it); remove that first"
        case "quantized":
            return f"its weight has dtype {W.dtype}; dequantize it first"  # type: ignore[union-attr]
        case "partitioned":
            return "its weight is partitioned by DeepSpeed (ZeRO-3), which would not know the merged one; merge without ZeRO-3"
        case "sharded" | "wrapped":
            return (
                f"its weight is a {type(W).__name__}, and only plain tensors can be merged: gather it first "
                "(merge_weights=False keeps eval() from merging)"
            )
    return None
