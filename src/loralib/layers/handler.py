"""Which updates a kind of layer takes: the shapes of the factors, their starting values, the class, and what does not fit.

Nearly all of it is asked of plain layers, before they are adapted; what an adapted layer does is in `base`.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapters.updates import LoRAUpdate
from ..errors import ConfigError
from .merging import Mergeable

_KAIMING_GAIN = nn.init.calculate_gain("leaky_relu", math.sqrt(5))


class Handler(Mergeable):
    """The part of `AdaptedLayer` that says which updates fit a layer."""

    update_classes: ClassVar[tuple[type[LoRAUpdate], ...]] = (LoRAUpdate,)
    structure_fields: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def factor_shapes(cls, layer: nn.Module, r: int, **structure: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B that fit a layer.

        Args:
            layer: The layer, adapted already or not.
            r: The rank.
            **structure: What `structure` says of the update.

        Returns:
            The shape of A and that of B.
        """
        raise NotImplementedError

    @classmethod
    def make_update(
        cls, layer: nn.Module, A: Tensor, B: Tensor, lora_alpha: float, use_rslora: bool, **structure: Any
    ) -> LoRAUpdate:
        """The factors as an update of a layer.

        Args:
            layer: A layer like the one that the update is for.
            A: The first factor.
            B: The second factor.
            lora_alpha: The numerator of the scaling.
            use_rslora: Whether to scale by lora_alpha / √r.
            **structure: What `structure` says of the update.

        Returns:
            An update of the first of `update_classes`.
        """
        return cls.update_classes[0](A, B, lora_alpha, use_rslora, **structure)

    @classmethod
    def structure(cls, source: Any) -> dict[str, Any]:
        """What, besides shapes, an update or an adapted layer says about the meaning of its factors: by default nothing.

        Args:
            source: The update or the layer.

        Returns:
            The attributes in `structure_fields`, by name.
        """
        return {name: getattr(source, name) for name in cls.structure_fields}

    @staticmethod
    def reset_factors(A: Tensor, B: Tensor) -> None:
        """Starting values: A Kaiming-uniform (a = √5, as nn.Linear's weight), and B zero, so that ΔW = 0 (paper, section 4.1).

        Args:
            A: Is overwritten.
            B: Is overwritten.
        """
        if A.numel():
            bound = math.sqrt(3.0) * (_KAIMING_GAIN / math.sqrt(A.numel() // A.shape[0]))
            A.uniform_(-bound, bound)
        B.zero_()

    @classmethod
    def new_update(
        cls, layer: nn.Module, r: int, lora_alpha: float, use_rslora: bool, dtype: torch.dtype, **structure: Any
    ) -> LoRAUpdate:
        """A freshly initialised update, on the device of the layer's weight.

        Args:
            layer: The layer that it is for.
            r: The rank.
            lora_alpha: The numerator of the scaling.
            use_rslora: Whether to scale by lora_alpha / √r.
            dtype: Of the factors.
            **structure: As for `factor_shapes`.

        Returns:
            The update.
        """
        W = layer.weight
        assert isinstance(W, Tensor)
        A, B = (torch.empty(shape, dtype=dtype, device=W.device) for shape in cls.factor_shapes(layer, r, **structure))
        if not W.is_meta:  # where nothing can be drawn, and trying takes long
            cls.reset_factors(A, B)
        return cls.make_update(layer, A, B, lora_alpha, use_rslora, **structure)

    @property
    def update(self) -> LoRAUpdate:
        """The layer's update; it shares memory with the layer's factors."""
        return self.update_of(self.lora_A.detach(), self.lora_B.detach())

    @classmethod
    def misfit(cls, layer: nn.Module, update: LoRAUpdate) -> str | None:
        """Why an update does not fit a layer.

        Args:
            layer: The layer, adapted already or not.
            update: An update of one of `update_classes`.

        Returns:
            The reason, or None.
        """
        if isinstance(layer, Handler) and layer.has_update:
            expected = layer.update
        else:
            structure, A, B = cls.structure(update), update.A, update.B
            try:
                shapes = cls.factor_shapes(layer, update.r, **structure)
                fits = shapes == (A.shape, B.shape)
                if fits and not structure and type(update) is cls.update_classes[0]:
                    return None
                if not fits:
                    A, B = (torch.empty(shape, device="meta") for shape in shapes)
                expected = cls.make_update(layer, A, B, update.lora_alpha, update.use_rslora, **structure)
            except ConfigError as error:
                return str(error)
        pairs = zip(update.form(), expected.form(), strict=False)
        return "; ".join(f"{key} {a} in the adapter, {b} in the model" for (key, a), (_, b) in pairs if a != b) or None

    def own_form(self, update: LoRAUpdate) -> LoRAUpdate:
        """An update in the form that this layer's factors have.

        Args:
            update: The update.

        Returns:
            The same ΔW in that form where it can be written so exactly; else `update`.
        """
        return update

    @staticmethod
    def problem_of_weights(layer: nn.Module, lora_dropout: float) -> str | None:
        """Why a plain layer cannot be computed by its own forward with another weight.

        Args:
            layer: The layer.
            lora_dropout: The probability of dropout on the update's input.

        Returns:
            The reason, or None.
        """
        if lora_dropout:
            return f"lora_dropout={lora_dropout} cannot act in it, since its update is added to its weight; exclude it or use 0"
        if "weight" not in layer._parameters:
            return "its weight is not a Parameter (a parametrization or weight norm computes it); remove that first"
        return "its forward was replaced (by accelerate hooks, say); undo that first" if "forward" in vars(layer) else None
