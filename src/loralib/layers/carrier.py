"""A layer with a weight and an update: where both are, whether the update acts, and the weight that it would make."""

from torch import Tensor, nn

from ..adapters.layout import Layout
from ..adapters.updates import LoRAUpdate
from .temporary_weight import TemporaryWeights


class Carrier(TemporaryWeights):
    """A module with a Parameter `weight` and, where it has a rank, the factors of an update."""

    weight: nn.Parameter
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    r: int = 0
    merged: bool = False
    merge_weights: bool = False
    disabled: bool = False
    scaling: float = 0.0

    def effective_weight(self, W: Tensor) -> Tensor:
        """The weight with which the base layer would compute what this layer computes.

        Args:
            W: The base's weight.

        Returns:
            W + ΔW, in the shape of `W`.
        """
        raise NotImplementedError

    def update_of(self, A: Tensor, B: Tensor) -> LoRAUpdate:
        """These factors as an update of the layer, with its scaling.

        Args:
            A: The first factor.
            B: The second factor.

        Returns:
            The update.
        """
        raise NotImplementedError

    @classmethod
    def layout(cls, layer: nn.Module) -> Layout:
        """How a layer stores its weight.

        Args:
            layer: The layer, adapted already or not.

        Returns:
            (out, in, *), unless the kind of layer says otherwise.
        """
        return Layout()

    @property
    def has_update(self) -> bool:
        """Whether the layer has a rank, and factors: both may be given and taken at any time."""
        if not self.r:
            return False
        held = self._parameters
        if held.get("lora_A") is not None and held.get("lora_B") is not None:
            return True
        return getattr(self, "lora_A", None) is not None and getattr(self, "lora_B", None) is not None

    @property
    def acts(self) -> bool:
        """Whether the forward pass has an update to add to what the base layer computes."""
        return not self.merged and not self.disabled and self.has_update

    @property
    def pristine_weight(self) -> nn.Parameter:
        """The base's own weight, which is not the one in place while the layer is merged."""
        return self.original("weight")

    def home_of_weight(self) -> nn.Parameter | None:
        """The Parameter that the weight is in: the weight itself, if the layer has one.

        Returns:
            The Parameter, or None.
        """
        return self._parameters.get("weight")

    def update_problem(self) -> str | None:
        """Why the update cannot be merged into a weight that can be replaced.

        Returns:
            The reason, or None.
        """
        raise NotImplementedError
