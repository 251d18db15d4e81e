"""How a layer comes to carry a LoRA update, and how it is rid of it again: in-place adoption.

An adapted layer *is* its base layer: its class becomes a subclass of the base's, its weight, hooks, ties and outside
references stay, and `super().forward` is the base's own computation. Each kind of layer adds two things in its own file:
`forward`, and `effective_weight`, the one truth that merging uses.

Merging never subtracts. It sets the original Parameter aside and puts a new one in its place; unmerging puts the same
object back, so no bit of the weight can change, in any dtype, after any number of cycles.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..adapter import LoRAUpdate
from ..config import check_alpha, check_dropout, check_rank, lora_scaling
from ..errors import LayerError

if TYPE_CHECKING:
    _Module = nn.Module
else:  # so that a layer of one's own may put nn.Module before or after LoRALayer
    _Module = object


class LoRALayer:
    """The attributes that every LoRA layer has: loralib 0.1's base class, for layers of one's own and for `isinstance`.

    r: rank, 0 for none. lora_alpha: numerator of the scaling. lora_dropout: dropout on the update's input (0.1 takes a
    probability here; the attribute is a module). merge_weights: merge on `eval()`, unmerge on `train()`.
    Raises `ConfigError` for values that cannot work.

    >>> class MyLayer(nn.Module, LoRALayer):
    ...     def __init__(self):
    ...         nn.Module.__init__(self)
    ...         LoRALayer.__init__(self, r=4, lora_alpha=8, lora_dropout=0.1, merge_weights=False)
    >>> MyLayer().lora_dropout
    Dropout(p=0.1, inplace=False)
    """

    r: int = 0
    lora_alpha: float = 1
    lora_dropout: nn.Module
    merged: bool = False
    merge_weights: bool = False

    def __init__(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool):
        self.r = check_rank(r, zero=True)
        self.lora_alpha = check_alpha(lora_alpha)
        self.lora_dropout = dropout_module(lora_dropout)
        self.merged = False
        self.merge_weights = merge_weights


def dropout_module(p: float) -> nn.Module:
    """Dropout with probability `p`, or the identity."""
    return nn.Dropout(check_dropout(p)) if p else nn.Identity()


class AdaptedLayer(LoRALayer, _Module):
    """A base layer that carries a LoRA update. Mixed in front of the base class by each kind of layer."""

    base_class: ClassVar[type[nn.Module]]
    weight: nn.Parameter
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scaling: float = 0.0
    use_rslora: bool = False
    disabled: bool = False
    _carried_forward: Callable[..., Any] | None = None
    _set_aside: nn.Parameter | None = None
    _flag_at_merge: bool = False

    # --- what each kind of layer says of itself ---------------------------------------------------------------------

    def effective_weight(self, W: Tensor) -> Tensor:
        """The weight with which the base layer would compute what this layer computes; `W` is the base's weight."""
        raise NotImplementedError

    @classmethod
    def new_update(cls, layer: nn.Module, r: int, lora_alpha: float, use_rslora: bool, dtype: torch.dtype) -> LoRAUpdate:
        """A freshly initialised update for `layer`, on its weight's device: A random and B zero, so that ΔW = 0."""
        raise NotImplementedError

    @classmethod
    def update_shapes(cls, layer: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B that fit `layer` at rank `r`."""
        raise NotImplementedError

    # --- state ------------------------------------------------------------------------------------------------------

    @property
    def update(self) -> LoRAUpdate:
        """The layer's update; it shares memory with the layer's factors."""
        lora_alpha = self.lora_alpha
        if self.scaling != lora_scaling(self.r, lora_alpha, self.use_rslora):  # `scaling` was assigned, as 0.1 allows
            lora_alpha = self.scaling / lora_scaling(self.r, 1, self.use_rslora)
        return LoRAUpdate(self.lora_A.detach(), self.lora_B.detach(), lora_alpha, self.use_rslora)

    @property
    def acts(self) -> bool:
        """Whether the forward pass has an update to add to what the base layer computes."""
        return bool(self.r) and not self.merged and not self.disabled

    @property
    def pristine_weight(self) -> nn.Parameter:
        """The base's own weight, which is not the one in place while the layer is merged."""
        return self.weight if self._set_aside is None else self._set_aside

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base layer computes, with the weight it holds now."""
        if self._carried_forward is not None:
            return self._carried_forward(*args, **kwargs)
        return super().forward(*args, **kwargs)

    def add_factors(self, update: LoRAUpdate) -> None:
        """Take the tensors of `update` as this layer's trainable factors."""
        self.lora_A, self.lora_B = nn.Parameter(update.A), nn.Parameter(update.B)
        self.use_rslora, self.scaling = update.use_rslora, update.scaling

    def load_update(self, update: LoRAUpdate) -> None:
        """Copy an update of the same shapes into this layer's factors; a merged layer is merged anew."""
        with self.unmerged(), torch.no_grad():
            self.lora_A.copy_(update.A)
            self.lora_B.copy_(update.B)
            self.lora_alpha, self.use_rslora, self.scaling = update.lora_alpha, update.use_rslora, update.scaling

    # --- merging ----------------------------------------------------------------------------------------------------

    def merge_problem(self) -> str | None:
        """Why the weight cannot be merged, or None."""
        if self.disabled:
            return "its update is disabled; merge outside the `disabled` block"
        W = self._parameters.get("weight")
        if W is None:
            return "its weight is no Parameter of the layer (a parametrization or weight norm computes it); remove that first"
        if type(W) is not nn.Parameter:
            return (
                f"its weight is a {type(W).__name__}, and only plain tensors can be merged: gather it first "
                "(merge_weights=False keeps eval() from merging)"
            )
        if not W.is_floating_point():
            return f"its weight has dtype {W.dtype}; dequantize it first"
        return None

    def merge(self) -> None:
        """Compute with W' = `effective_weight(W)` from now on; W is set aside. Nothing happens to a merged layer.

        Raises `LayerError` when the weight is sharded, quantized or computed by a parametrization.
        """
        if self.merged or not self.r:
            return
        if problem := self.merge_problem():
            raise LayerError(f"{type(self).__name__} cannot be merged: {problem}. Nothing was changed.")
        W = self.weight
        with torch.inference_mode(False), torch.no_grad():
            merged = nn.Parameter(self.effective_weight(W), requires_grad=W.requires_grad)
        self.__dict__["_set_aside"] = W  # past nn.Module.__setattr__, which would register it
        self._flag_at_merge = W.requires_grad
        self._parameters["weight"] = merged
        self.merged = True

    def unmerge(self) -> None:
        """Put back the Parameter object that `merge` set aside, bit for bit. Nothing happens to an unmerged layer."""
        if not self.merged:
            return
        W: nn.Parameter = self.__dict__.pop("_set_aside")
        if self.weight.requires_grad != self.__dict__.pop("_flag_at_merge"):  # set meanwhile; else W's own flag stands
            W.requires_grad_(self.weight.requires_grad)
        self._parameters["weight"] = W
        self.merged = False

    @contextmanager
    def unmerged(self) -> Iterator[None]:
        """The pristine weight is in its place inside the block; a merged layer is merged anew after it."""
        was_merged = self.merged
        self.unmerge()
        try:
            yield
        finally:
            if was_merged:
                self.merge()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; with `merge_weights`, merge when it is evaluation and unmerge when it is training (inside a
        `disabled` block, as soon as it ends)."""
        super().train(mode)
        if self.merge_weights and not self.disabled:
            (self.unmerge if mode else self.merge)()
        return self

    # --- what must act on the pristine weight, merged or not --------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        merged = self._parameters.get("weight")
        if self.merged:
            self._parameters["weight"] = self._set_aside
        try:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        finally:
            if self.merged:
                self._parameters["weight"] = merged

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self.unmerged():
            super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with self.unmerged():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and self.merged:
            with self.unmerged():
                super().__setattr__(name, value)
        elif name == "forward" and self._carried_forward is not None:  # hooks come and go around the base's forward
            self._carried_forward = value
        else:
            super().__setattr__(name, value)

    # --- pickling classes that were made to measure -----------------------------------------------------------------

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        mixin = vars(type(self)).get("_mixin")
        return (_new_made_to_measure, (mixin, self.base_class), *reduced[2:]) if mixin else reduced


_MADE: dict[tuple[type[AdaptedLayer], type[nn.Module]], type[AdaptedLayer]] = {}


def made_to_measure(mixin: type[AdaptedLayer], base: type[nn.Module]) -> type[AdaptedLayer]:
    """`mixin` in front of a base class that has no adapted class of its own; the same class on every call."""
    if (mixin, base) not in _MADE:
        members = {"__doc__": base.__doc__, "_mixin": mixin, "base_class": base}
        _MADE[mixin, base] = type(f"LoRA{base.__name__}", (mixin, base), members)
    return _MADE[mixin, base]


def _new_made_to_measure(mixin: type[AdaptedLayer], base: type[nn.Module]) -> AdaptedLayer:
    cls = made_to_measure(mixin, base)
    return cls.__new__(cls)
