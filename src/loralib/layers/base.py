"""What all layers with a LoRA update share, whether they were built with it or adopted in place.

An adapted layer *is* its base layer: its class is a subclass of the base's, its weight, hooks, ties and outside references
stay, and `super().forward` is the base's own computation (see `adopted`). Each kind of layer has its own file, which says the
shapes of its factors, how its weight is stored and, where there is a better way than the base's forward with the effective
weight, `forward`. What an update does to a weight is `LoRAUpdate.effective_weight`; merging is in `merging`.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapters.soundness import devices_problem, merge_problem, not_finite
from ..adapters.updates import LoRAUpdate
from ..config import lora_scaling
from ..errors import LayerError
from ..ops import ON_META
from .adopted import Adopted
from .allocation import KeepsFactors
from .dropout import probability
from .handler import Handler
from .loading import was_saved_merged
from .lora_layer import LoRALayer
from .merging import Mergeable


class AdaptedLayer(LoRALayer, Handler, Adopted, KeepsFactors, Mergeable):
    """A base layer that carries a LoRA update. Mixed in front of the base class by the LoRA class of each kind of layer.

    Such a class says `factor_shapes`, and `layout` where the weight is not stored as (out, in, *). Where the base's forward
    with the effective weight in its place is not the best way to compute, it has a `forward`. Where its updates are not
    `LoRAUpdate` with a Kaiming-uniform A and a zero B, it says that as well: `update_classes`, `make_update`, `reset_factors`;
    and when shapes alone do not tell what the factors mean, `structure`, whose entries `structure_fields` keeps on the layer.
    `register_layer` has an example.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
        >>> [isinstance(layer, lora.AdaptedLayer) for layer in model]
        [True, False]
    """

    own_attributes: ClassVar[tuple[str, ...]] = (
        *("lora_A", "lora_B", "lora_dropout"),
        *("r", "lora_alpha", "scaling", "use_rslora", "merged", "merge_weights", "disabled", "fan_in_fan_out"),
    )
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scaling: float = 0.0
    use_rslora: bool = False

    # --- what each kind of layer says of itself ---------------------------------------------------------------------

    def effective_weight(self, W: Tensor) -> Tensor:
        """The weight with which the base layer would compute what this layer computes.

        Args:
            W: The base's weight.

        Returns:
            W + ΔW, in the shape and dtype of `W`, and differentiable.
        """
        return self.update_of(self.lora_A, self.lora_B).effective_weight(W, self.layout(self))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer's output, with the update.

        Args:
            *args: Those of the base layer.
            **kwargs: Those of the base layer.

        Returns:
            What the base layer returns.

        Raises:
            LayerError: When `lora_dropout` was assigned to a layer in which it cannot act.
        """
        if not self.acts:
            return self.forward_without_update(*args, **kwargs)
        self.check_no_dropout()
        return self.forward_with(self.effective_weight(self.weight), *args, **kwargs)

    def forward_without_update(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer's output, where there is no update or it is merged.

        Where the merged weight is out of date, it is that of an unmerged layer.

        Args:
            *args: Those of the base layer.
            **kwargs: Those of the base layer.

        Returns:
            What the base layer returns.
        """
        if not self.is_stale():
            return self.base_forward(*args, **kwargs)
        if self._carried_forward is None:
            return self.unmerged_twin().forward(*args, **kwargs)
        self.merge_again()  # the carried forward knows only this layer, not a twin of it
        return self.base_forward(*args, **kwargs)

    def check_no_dropout(self) -> None:
        """Check that there is no dropout, for a layer whose update has no input of its own to drop.

        Raises:
            LayerError: When `lora_dropout` was assigned to it.
        """
        if probability(self.lora_dropout) != 0.0:
            raise LayerError(
                f"{type(self).__name__} has lora_dropout={self.lora_dropout}, which cannot act in it, since its update is "
                "added to its weight; leave dropout out of this layer."
            )

    @classmethod
    def layer_problem(cls, layer: nn.Module, lora_dropout: float) -> str | None:
        """Why a plain layer of this kind cannot be adapted.

        Args:
            layer: The layer.
            lora_dropout: The probability of dropout on the update's input.

        Returns:
            The reason, or None.
        """
        return cls.problem_of_weights(layer, lora_dropout) if cls.forward is AdaptedLayer.forward else None

    # --- its update -------------------------------------------------------------------------------------------------

    def update_problem(self) -> str | None:
        """Why the update cannot be merged into the base's weight, or None."""
        W = self.pristine_weight
        if W.is_meta and ("forward" in vars(self) or self._carried_forward is not None):
            return "its weight is offloaded, and brought back only while the layer is called; load the model without offloading"
        if not type(self).effective_weight.__module__.startswith(__package__):  # only its author knows what fits
            return devices_problem(self.update, W) or not_finite(self.update)
        return merge_problem(self.update, W, self.layout(self))

    def update_of(self, A: Tensor, B: Tensor) -> LoRAUpdate:
        """These factors as an update of the layer, with its scaling."""
        lora_alpha = self.lora_alpha
        if self.scaling != lora_scaling(self.r, lora_alpha, self.use_rslora):  # `scaling` was assigned, as 0.1 allows
            lora_alpha = self.scaling / lora_scaling(self.r, 1, self.use_rslora)
        return self.make_update(self, A, B, lora_alpha, self.use_rslora, **self.structure(self))

    def adapter_parameters(self) -> Mapping[str, nn.Parameter]:
        """The layer's own Parameters that belong to the adapter.

        Returns:
            The factors by name.
        """
        own = ((name, self._parameters.get(name)) for name in ("lora_A", "lora_B"))
        return {name: parameter for name, parameter in own if parameter is not None}

    def add_factors(self, update: LoRAUpdate) -> None:
        """Take the tensors of an update as this layer's trainable factors.

        Args:
            update: The update.
        """
        self._parameters.update(lora_A=nn.Parameter(update.A), lora_B=nn.Parameter(update.B))  # names that are free
        vars(self).update(use_rslora=update.use_rslora, scaling=update.scaling)
        for name, value in self.structure(update).items():
            setattr(self, name, value)

    def load_update(self, update: LoRAUpdate) -> None:
        """Copy an update into this layer's factors. A merged layer is merged again; factors on the meta device are replaced.

        Args:
            update: An update of the same shapes.
        """
        with self.unmerged(), torch.no_grad():
            self.allocate_factors(update)
            self.lora_A.copy_(update.A)
            self.lora_B.copy_(update.B)
            vars(self).update(lora_alpha=update.lora_alpha, use_rslora=update.use_rslora, scaling=update.scaling)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load; where the weight was saved merged, with the factors that are in it, the layer keeps its own."""
        if self.has_update and was_saved_merged(self, state_dict, prefix):
            warnings.warn(
                f"The weight of {prefix.removesuffix('.') or type(self).__name__!r} was saved merged, as loralib 0.1 did in "
                "evaluation mode: it is the model's own plus the update of the factors next to it. The model keeps its own, so "
                "that the update counts once.",
                stacklevel=2,
            )
            state_dict[prefix + "weight"] = self.pristine_weight.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # --- loralib 0.1's constructors ---------------------------------------------------------------------------------

    def build(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool) -> None:
        """The second half of a constructor of loralib 0.1, once the base layer is built.

        Sets the attributes, adds factors unless their rank is 0, freezes the weight then, and draws all parameters (again: the
        same seed gives 0.1's numbers).

        Args:
            r: The rank.
            lora_alpha: The numerator of the scaling.
            lora_dropout: The probability of dropout on the update's input.
            merge_weights: Whether to merge on `eval()`.
        """
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        shapes = self.factor_shapes(self, r, **self.structure(self))
        if shapes[0][0]:
            if rank_is_excessive(r, *shapes):
                warnings.warn(f"r={r} is larger than both sides of {type(self).__name__}'s weight.", stacklevel=3)
            self.lora_A, self.lora_B = (nn.Parameter(self.weight.new_zeros(shape)) for shape in shapes)
            self.scaling = lora_scaling(r, lora_alpha)
            self.weight.requires_grad_(False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the base's parameters as it does itself, and the factors' starting values."""
        with self.originals():
            super().reset_parameters()  # type: ignore[misc]
            if self.has_update:
                self.reset_factors(self.lora_A.detach(), self.lora_B.detach())

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "lora_dropout":  # torch refuses a function in the place of a module
            self._modules.pop(name, None)
        super().__setattr__(name, value)

    # --- what is wrong with an input --------------------------------------------------------------------------------

    def shape_problem(self, x: Tensor) -> str | None:
        """Why the shape of an input does not fit this layer.

        Args:
            x: The input.

        Returns:
            The reason, or None.
        """
        return None

    def mismatch(self, x: Tensor) -> str | None:
        """What of the input, the weight and the factors does not go together.

        Args:
            x: The input.

        Returns:
            The reason, or None.
        """
        tensors = {"the input": x, "the weight": self.weight, "lora_A": self.lora_A, "lora_B": self.lora_B}
        if problem := self.shape_problem(x):
            return problem
        if len({tensor.device for tensor in tensors.values()}) > 1:
            found = "not all on one device: " + ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
            return found + (f"; {ON_META}" if any(tensor.is_meta for tensor in tensors.values()) else "")
        if x.is_floating_point() and self.weight.is_floating_point() and x.dtype != self.weight.dtype:
            return f"the input is {x.dtype} and the weight {self.weight.dtype}"
        return None

    def explain(self, error: RuntimeError, x: Tensor) -> None:
        """Replace an error of torch by one that names the layer and both sides, where a `mismatch` caused it.

        Args:
            error: The error.
            x: The input.

        Raises:
            LayerError: When there is a mismatch.
        """
        if problem := self.mismatch(x):
            raise LayerError(f"{self._described()}: {problem}.") from error

    def _described(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """The base layer's description and the update's.

        Returns:
            What stands between the parentheses of the layer's `repr`.
        """
        update = f", r={self.r}, lora_alpha={self.lora_alpha}" if self.r else ", r=0"
        return super().extra_repr() + update + (", merged" if self.merged else "")


def rank_is_excessive(r: int, shape_A: tuple[int, ...], shape_B: tuple[int, ...]) -> bool:
    """Whether `r` exceeds both sides of a ΔW that is not empty: as a matrix it would then be smaller than its factors.

    >>> rank_is_excessive(8, (8, 4), (6, 8)), rank_is_excessive(8, (8, 4), (16, 8))
    (True, False)
    """
    sides = math.prod(shape_A[1:]), shape_B[0]
    return r > max(sides) and min(sides) > 0
