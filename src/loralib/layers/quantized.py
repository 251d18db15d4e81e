"""Linear layers whose base is quantized: the update is added to what the quantized layer computes, and merged

    into "dense"    the dequantized weight, W' = dense(W) + ΔW: nothing of the update is lost. While it is merged, and for good
                    with `keep=False`, the layer is a plain linear one
    into "same"     W' quantized as W was; `share_lost` says how much of the update that lost

`unmerge` gives back the very quantized object.
"""

from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import quant
from ..adapters.soundness import not_finite, out_of_range
from ..adapters.updates import LoRAUpdate
from ..choices import MergeInto
from .base import AdaptedLayer
from .state_dicts import Baked


class QuantizedWeight(AdaptedLayer):
    """The part of `LinearLoRA` that knows quantized weights."""

    own_attributes: ClassVar[tuple[str, ...]] = ("into", "share_lost", "becomes_plain", "_of_base")
    into: MergeInto = "dense"
    share_lost: float | None = None  # of the update, by the last merging into "same"

    def add_factors(self, update: LoRAUpdate) -> None:
        """Take the tensors of `update` as this layer's trainable factors, and let gradients go on passing through the base."""
        super().add_factors(update)
        if changed := quant.stay_trainable(self, self._parameters.get("weight")):
            vars(self)["_of_base"] = changed

    def quantized(self) -> quant.Quantized | None:
        """What is known of the base's weight, where it is quantized.

        Returns:
            It, or None.
        """
        return quant.of(
            self, self._replaced["weight"].original if "weight" in self._replaced else self._parameters.get("weight")
        )

    def merge_problem(self) -> str | None:
        """Why the layer cannot be merged, or None."""
        found = None if self.disabled else self.quantized()
        if found is None:
            return super().merge_problem()
        update, shape = self.update, (vars(self)["out_features"], vars(self)["in_features"])
        if update.canonical_shape != shape:
            return f"its weight is for {shape}, and its update for {update.canonical_shape}"
        if self.into == "same" and found.requantize is None:
            return f"a weight of {found.kind} is not quantized again here; merge into 'dense', a plain one"
        return not_finite(update) or out_of_range(update)

    def merge_again(self) -> None:
        """Replace the weight by the effective one, dense or quantized again."""
        found = self.quantized()
        if found is None:
            super().merge_again()
            return
        with torch.inference_mode(False), torch.no_grad():
            W = found.dense()
            changed = self.update_of(self.lora_A, self.lora_B).effective_weight(W)
            if self.into == "same" and found.requantize is not None:
                made: Tensor = found.requantize(changed)
                again = quant.of(self, made)
                vars(self)["share_lost"] = quant.share_lost(W, changed, again.dense() if again else changed)
            else:
                made = changed
            self.replace_temporarily("weight", made)
        self.note_factors()

    def computes_densely(self) -> bool:
        """Whether the layer holds a dense weight that the quantized layer's own forward cannot multiply with.

        Returns:
            True while such a layer is merged into "dense".
        """
        if not self.merged or self.into != "dense" or "weight" not in self._replaced:
            return False
        found = self.quantized()
        return found is not None and found.by_layer

    def is_wider(self) -> bool:
        """Whether the dense weight that it holds is of float32 only because nothing says the layer's dtype.

        Returns:
            True for such a layer, merged into "dense".
        """
        found = self.quantized() if self.computes_densely() else None
        return found is not None and not found.has_dtype

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer's output, with the weight it holds now."""
        if not self.computes_densely():
            return super().base_forward(*args, **kwargs)
        x, W, b = args[0] if args else kwargs["x"], self.weight, self._parameters.get("bias")
        return F.linear(x.to(W.dtype), W, None if b is None else b.to(W.dtype)).to(x.dtype)

    def plain_problem(self) -> str | None:
        """Why the layer, merged into "dense", cannot be made a plain linear layer for good.

        Returns:
            The reason, or None.
        """
        base: type = type(self).base_class
        if not self.computes_densely() or _becomes_linear(base):
            return None
        return (
            f"a {base.__name__} layer cannot be made a plain one in place; load lora.merged_state_dict(model) into a model "
            "that is not quantized"
        )

    def keep_merged(self) -> None:
        """Make the merged weight the layer's own; with a dense one, the layer is to be a plain linear layer."""
        found = self.quantized() if self.merged and self.into == "dense" else None
        super().keep_merged()
        if found is not None:
            vars(self)["becomes_plain"] = found

    def give_back(self) -> None:
        """Make the layer what it was, or a plain linear one, where its dense weight is kept."""
        was: quant.Quantized | None = vars(self).get("becomes_plain")
        of_base: dict[str, Any] = vars(self).get("_of_base", {})
        super().give_back()
        vars(self).update(of_base)
        if was is None:
            return
        if was.by_layer:
            known = vars(nn.Linear(1, 1, device="meta")).keys()
            for name in [name for name in vars(self) if name not in known]:
                del vars(self)[name]
            self._buffers.clear()  # scales of the quantized layer's own
            self.__class__ = nn.Linear  # type: ignore[assignment]
        elif was.kind.startswith("torchao"):
            vars(self).pop("extra_repr", None)  # which describes the old weight

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """A dense weight is saved as that of a plain layer, without what the quantized layer adds."""
        if isinstance(destination, Baked) and self.computes_densely():
            nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)
            for name in self._buffers:
                destination.pop(prefix + name, None)
        else:
            super()._save_to_state_dict(destination, prefix, keep_vars)


@cache
def _becomes_linear(base: type) -> bool:
    """Whether Python lets an object of class `base` become an `nn.Linear`: not where it has other bases too, as quanto's."""
    probe: nn.Module = object.__new__(base)
    try:
        object.__setattr__(probe, "__class__", nn.Linear)
    except TypeError:
        return False
    return True
