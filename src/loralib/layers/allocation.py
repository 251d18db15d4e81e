"""Factors of layers on the meta device, which has shapes and no values: they are made once there is memory for them.

`to_empty` allocates without values. A layer whose weight it takes off the meta device keeps the factors that have values, which
`attach` gave it, and draws starting values for those that have none.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..adapters.updates import LoRAUpdate
from .class_factory import ModuleMixin


class KeepsFactors(ModuleMixin):
    """A layer whose factors outlive the allocation of its weight."""

    weight: nn.Parameter

    def adapter_parameters(self) -> Mapping[str, nn.Parameter]:
        """The layer's own Parameters that belong to the adapter.

        Returns:
            The factors by name.
        """
        raise NotImplementedError

    @staticmethod
    def reset_factors(A: Tensor, B: Tensor) -> None:
        """Starting values.

        Args:
            A: Is overwritten.
            B: Is overwritten.
        """
        raise NotImplementedError

    def allocate_factors(self, update: LoRAUpdate) -> None:
        """Replace factors on the meta device by new ones without values, on the device of the weight or else of the update.

        Args:
            update: The update that they are to take.
        """
        for name, parameter in self.adapter_parameters().items():
            if parameter.is_meta:
                device = update.A.device if self.weight.is_meta else self.weight.device
                empty = torch.empty_like(parameter, device=device)
                self._parameters[name] = nn.Parameter(empty, parameter.requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.values_before()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if before is not None:
            self.restore_values(before)
        return self

    def weight_on_meta(self) -> bool:
        """Whether the weight has a shape and no values.

        Returns:
            True on the meta device.
        """
        W = self._parameters.get("weight")
        return W is not None and W.is_meta

    def values_before(self) -> dict[str, Tensor] | None:
        """The factors, when the weight or one of them is on the meta device.

        Returns:
            Them by name, or None.
        """
        factors = {name: parameter.detach() for name, parameter in self.adapter_parameters().items()}
        return factors if self.weight_on_meta() or any(tensor.is_meta for tensor in factors.values()) else None

    def restore_values(self, before: Mapping[str, Tensor]) -> None:
        """Give factors that may have been allocated again their values, or starting values where they had none.

        Args:
            before: What `values_before` gave.
        """
        factors: dict[str, Any] = dict(self.adapter_parameters())
        if not factors or any(factor.is_meta for factor in factors.values()):
            return
        with torch.no_grad():
            if any(tensor.is_meta for tensor in before.values()):
                self.reset_factors(factors["lora_A"], factors["lora_B"])
                return
            for name, tensor in before.items():
                factors[name].copy_(tensor)
