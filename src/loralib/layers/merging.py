"""Merging one layer's update into its weight, and back bit for bit.

`merge` replaces the Parameter temporarily by W' = `effective_weight(W)`, computed in float32 and rounded once; `unmerge`
restores the same object. A merged layer computes as the plain one does, as long as W' is made of what the layer holds: once its
factors were changed, or its tensors exchanged for a functional call, it computes with those, unmerged.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from .. import tensors
from ..errors import LayerError
from ..tensors import same_memory, version
from .carrier import Carrier

_NOT_SHARED = ("_replaced", "_made_of", "forward")  # by a twin; an instance's own forward (accelerate) calls that instance


class _MadeOf(NamedTuple):
    """What a merged weight was made of: the factors, their versions, and the scaling."""

    A: Tensor
    version_A: int
    B: Tensor
    version_B: int
    scaling: float


class Mergeable(Carrier):
    """A layer with an update that can be merged into its Parameter `weight`."""

    own_attributes: ClassVar[tuple[str, ...]] = ("_made_of",)
    _made_of: _MadeOf | None = None

    def merge_problem(self) -> str | None:
        """Why the layer cannot be merged.

        Returns:
            The reason, or None.
        """
        if self.disabled:
            return "its update is disabled; merge outside the `disabled` block"
        return storage_problem(self) or weight_problem(self.home_of_weight()) or self.update_problem()

    def merge(self) -> None:
        """Compute with W' = `effective_weight(W)` from now on. Nothing happens to a layer that is merged and up to date.

        Raises:
            LayerError: When the weight is sharded, quantized, offloaded or computed by a parametrization, or the factors do not
                fit it or hold numbers that are not finite.
        """
        if self.needs_merging():
            self._check_mergeable()
            self.merge_fitting()

    def needs_merging(self) -> bool:
        """Whether the layer has an update that is not in its weight as it is now.

        Returns:
            False for a layer without an update, or merged and up to date.
        """
        return self.has_update and (not self.merged or self.is_stale())

    def _check_mergeable(self) -> None:
        if problem := self.merge_problem():
            raise LayerError(f"{type(self).__name__} cannot be merged: {problem}. Nothing was changed.")

    def merge_fitting(self) -> None:
        """`merge` for a layer that needs it, and in which `merge_problem` finds nothing."""
        self.merge_again()
        vars(self)["merged"] = True

    def merge_again(self) -> None:
        """Replace the weight by the effective weight of the original."""
        with torch.inference_mode(False), torch.no_grad():
            self.replace_temporarily("weight", self.effective_weight(self.original("weight")))
        self.note_factors()

    def note_factors(self) -> None:
        """Remember what the merged weight is made of."""
        A, B = self.lora_A, self.lora_B
        vars(self)["_made_of"] = _MadeOf(A, version(A), B, version(B), self.scaling)

    def unmerge(self) -> None:
        """Restore the Parameter object that `merge` replaced. Nothing happens to an unmerged layer."""
        if self.merged:
            self.restore("weight")
            self._forget_merging()

    def keep_merged(self) -> None:
        """Make the merged weight the layer's own; the original is forgotten."""
        self.keep_replacement("weight")
        self._forget_merging()

    def _forget_merging(self) -> None:
        vars(self).update(merged=False)
        vars(self).pop("_made_of", None)

    @contextmanager
    def unmerged(self) -> Iterator[None]:
        """Context manager: the pristine weight is in its place inside the block; a merged layer is merged again after it."""
        was_merged = self.merged
        self.unmerge()
        try:
            yield
        finally:
            if was_merged:
                self.merge()

    def originals(self) -> AbstractContextManager[None]:
        """`unmerged`: what acts on the pristine weight may change the factors too, so the layer is merged again."""
        return self.unmerged()

    # --- what a merged layer computes -------------------------------------------------------------------------------

    def is_stale(self) -> bool:
        """Whether the layer is merged, and its factors, rank or scaling were changed since, or a functional call exchanged its
        tensors.

        Returns:
            True where the merged weight is out of date; in a compiled graph it is taken not to be.
        """
        if not self.merged or torch.compiler.is_compiling():
            return False
        made, A, B = self._made_of, self._parameters.get("lora_A"), self._parameters.get("lora_B")
        if A is None or B is None:  # in a replica of DataParallel, which has no Parameters, or computed by a parametrization
            return False
        if made is None or self.scaling != made.scaling or not self.r:
            return True
        if not (A is made.A or same_memory(A, made.A)) or not (B is made.B or same_memory(B, made.B)):
            return True
        if version(A) != made.version_A or version(B) != made.version_B:
            return True
        return not self.weight_is_merged()

    def weight_is_merged(self) -> bool:
        """Whether the weight in place is the one that merging put there.

        Returns:
            False where another tensor was exchanged for it.
        """
        entry = self._replaced.get("weight")
        return entry is None or entry.replacement is self._parameters["weight"] or self.holds_replacement("weight")

    def unmerged_twin(self) -> Self:
        """A layer that shares all with this merged one and is not merged; the layer itself is not touched.

        Returns:
            The twin.
        """
        twin = object.__new__(type(self))
        vars(twin).update({name: value for name, value in vars(self).items() if name not in _NOT_SHARED})
        vars(twin).update(merged=False, _parameters=self._parameters | self.waiting())
        return twin

    # --- what is assigned from outside ------------------------------------------------------------------------------

    def make_final(self, name: str) -> None:
        """Let the weight that is assigned to the merged layer be its own, without an update: it was computed from W'."""
        warnings.warn(
            f"A merged {type(self).__name__} was given a new {name}, computed from its merged one by the look of it (as when a "
            "batch norm is folded into it): it is final, and the layer has no update any more. To give it another base weight, "
            "unmerge the model first.",
            stacklevel=6,
        )
        self.keep_merged()
        self.drop_factors()

    def drop_factors(self) -> None:
        """Have no update any more."""
        for name in ("lora_A", "lora_B"):
            self._parameters.pop(name, None)
        vars(self).update(r=0)

    def __setattr__(self, name: str, value: Any) -> None:
        """As a module's, where three names mean more: `training`, which `train` and `eval` assign and others too (with
        `merge_weights`, the layer is merged for evaluation and unmerged for training; inside a `disabled` block, as soon as it
        ends); `merged`, which says, as in 0.1, what the weight holds; and a Parameter that is replaced (see `taken_for`)."""
        if name == "training" and self.merge_weights and not self.disabled:
            (self.unmerge if value else self.merge)()
        elif name == "merged":
            self.unmerge() if not value else self._take_weight_as_merged()
            return
        super().__setattr__(name, value)

    def _take_weight_as_merged(self) -> None:
        """The weight holds W + ΔW, says whoever assigned `merged`: take W out of it, in place, and merge."""
        if self.merged or not self.has_update:
            return
        self._check_mergeable()
        W = self.weight
        with torch.inference_mode(False), torch.no_grad():
            delta = self.effective_weight(torch.zeros_like(W, dtype=torch.promote_types(W.dtype, torch.float32)))
            W.copy_(W - delta)
        self.merge()

    def __delattr__(self, name: str) -> None:
        """As a module's; a merged layer whose factor is deleted keeps the merged weight, as programs for 0.1 bake it."""
        if name in ("lora_A", "lora_B") and self.merged and name in self._parameters:
            self.keep_merged()
        super().__delattr__(name)

    # --- copies -----------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """The state to copy or pickle: the counts of a tensor's changes start again in a copy, so only whether the merged
        weight is up to date is kept."""
        state = dict(vars(self))
        if "_made_of" in state:
            state["_made_of"] = not self.is_stale()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickled state; one of loralib 0.1's layers, which could be pickled with dropout, becomes one of ours."""
        up_to_date = state.pop("_made_of", None)
        super().__setstate__(state)
        if up_to_date:
            self.note_factors()
        elif self.merged and up_to_date is None and "lora_A" in self._parameters:  # by addition, in 0.1
            vars(self)["merged"] = False
            self._take_weight_as_merged()


RESIZED = "it was resized after LoRA was put on it; resize first (model.resize_token_embeddings, say), then inject or attach"


def storage_problem(layer: nn.Module) -> str | None:
    """Why no weight of `layer` can be replaced, whatever it is, or None.

    compressed-tensors' offloading keeps parameters in a cache that copies what is assigned into the weight itself.
    """
    held = layer._parameters
    if isinstance(held, dict):
        return None
    return (
        f"its parameters are in a {type(held).__name__}, which writes a replaced weight over the original; take the model out "
        "of it first (compressed_tensors.offload.remove_dispatch(model), say)"
    )


def weight_problem(W: Tensor | None) -> str | None:
    """Why `W` cannot be replaced by another weight, or None."""
    match tensors.kind(W):
        case "missing":
            return "its weight is not a Parameter (a parametrization or weight norm computes it); remove that first"
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
