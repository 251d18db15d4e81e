"""LoRA on the experts of a mixture, whose matrices are one 3-D Parameter:

    y = W[e]·x + s·B[e]·A[e]·dropout(x)        for each token x that is sent to expert e

    W (E, k, d), or (E, d, k) in a module that says `is_transposed`         A (E, r, d)    B (E, k, r)

One of A and B may be (1, …): shared by all experts. The module keeps its own forward, whichever implementation that is, and
routes its rows as before; for the time of a call a `RoutedWeight` stands in the place of the Parameter. ΔW is formed only to be
merged, and an expert that no token is sent to gets a gradient of zero.

Each such Parameter is a layer by its own name (`experts.gate_up_proj`). Its factors are in a child of the module, whose key
begins with `lora_`, since the name is the Parameter's.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapters.experts_update import ExpertsUpdate
from ..adapters.layout import Layout
from ..architectures import EXPERTS_IMPLEMENTATIONS
from ..choices import Factor
from ..errors import LayerError
from .base import AdaptedLayer
from .class_factory import lora_class
from .owned_weight import OwnedWeight, OwnedWeightLoRA, Owner
from .routed_weight import RoutedWeight, follow_grouped

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


class ExpertWeight(OwnedWeight):
    """A 3-D Parameter of a module, one matrix for each expert, as a layer that can be adapted."""

    @property
    def key(self) -> str:
        """The name under which the owner holds the adapted layer among its children."""
        return f"lora_{self.name}"


class ExpertWeightLoRA(OwnedWeightLoRA):
    """LoRA for an `ExpertWeight`: the factors of all experts."""

    own_attributes: ClassVar[tuple[str, ...]] = ("shared",)
    structure_fields = ("shared",)
    update_classes = (ExpertsUpdate,)
    shared: Factor | None = None  # the factor that all experts share

    @classmethod
    def layout(cls, layer: nn.Module) -> Layout:
        """(E, out, in), or transposed, as the owner says it."""
        owner: Any = layer.owner
        return Layout(transposed=bool(vars(owner).get("is_transposed", False)))

    @classmethod
    def factor_shapes(cls, layer: nn.Module, r: int, **structure: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A (E, r, d), B (E, k, r), where the one that is shared has 1 in the place of E."""
        W = layer.original("weight") if isinstance(layer, ExpertWeightLoRA) else layer.weight
        assert isinstance(W, Tensor)
        E, k, d = cls.layout(layer).to_canonical(W).shape
        shared = structure.get("shared")
        return (1 if shared == "A" else E, r, d), (1 if shared == "B" else E, k, r)

    @classmethod
    def make_update(
        cls, layer: nn.Module, A: Tensor, B: Tensor, lora_alpha: float, use_rslora: bool, **structure: Any
    ) -> ExpertsUpdate:
        """The factors as an update."""
        return ExpertsUpdate(A, B, lora_alpha, use_rslora)

    @staticmethod
    def reset_factors(A: Tensor, B: Tensor) -> None:
        """Each expert's as a linear layer's: A Kaiming-uniform, B zero."""
        AdaptedLayer.reset_factors(A.flatten(0, 1), B)

    def routed(self, W: Tensor) -> RoutedWeight:
        """The weight `W`, which the owner has in use, with the update."""
        if self.layout(self).transposed:
            L, R = self.lora_A.transpose(1, 2), self.lora_B.transpose(1, 2)
        else:
            L, R = self.lora_B, self.lora_A
        return RoutedWeight.of(W, L, R, self.scaling, self.lora_dropout)

    @classmethod
    def layer_problem(cls, layer: nn.Module, lora_dropout: float) -> str | None:
        """Why the experts' weight cannot be adapted, or None."""
        owner: Any = layer.owner
        if vars(owner).get("_is_expert_parallel"):
            return (
                "its experts are spread over processes (expert parallelism), which an update does not follow; load it without"
            )
        if "forward" in vars(owner):
            return f"the forward of the {type(owner).__name__} it belongs to was replaced; undo that first"
        return None


class ExpertsLoRA(Owner, _Module):
    """LoRA for a module that has weights of experts with updates. `inject` makes it, and `eject` undoes it.

    Example:
        >>> class Experts(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.down_proj = nn.Parameter(torch.ones(4, 2, 6))
        ...     def forward(self, x, expert):
        ...         return torch.nn.functional.linear(x, self.down_proj[expert])
        >>> model = nn.ModuleDict({"experts": Experts()})
        >>> lora.inject(model, lora.LoRAConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"]))
        ['experts.down_proj']
        >>> model["experts"](torch.ones(1, 6), 3)
        tensor([[6., 6.]], grad_fn=...)
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module, with the updates.

        Args:
            *args: Those of the module.
            **kwargs: Those of the module.

        Returns:
            What the module returns.

        Raises:
            LayerError: When it computes by an implementation that does not multiply with its weights by torch's products.
        """
        adapted = self.adapted()
        if any(layer.is_stale() for layer in adapted):
            return self.unmerged_twin().forward(*args, **kwargs)
        acting = [layer for layer in adapted if layer.acts and isinstance(layer, ExpertWeightLoRA)]
        routed = {layer.slot: layer.routed(getattr(self, layer.slot)) for layer in acting}
        if not routed:
            return self.base_forward(*args, **kwargs)
        _check_implementation(self)
        own = vars(self) | {"_parameters": self._parameters | routed}
        return self._by_twin(type(self).base_class.forward, own, args, kwargs)


def _check_implementation(module: nn.Module) -> None:
    """`LayerError` where a kernel would read the weights without the updates."""
    config = vars(module).get("config")
    chosen = getattr(config, "_experts_implementation", None)
    if chosen is not None and chosen not in EXPERTS_IMPLEMENTATIONS:
        raise LayerError(
            f"{type(module).__name__} computes by the experts implementation {chosen!r}, a kernel that would leave the updates "
            f"out; choose one of {', '.join(EXPERTS_IMPLEMENTATIONS)}: model.set_experts_implementation('grouped_mm')."
        )


def expert_weights(module: nn.Module) -> list[str]:
    """The Parameters of `module` itself that can be weights of experts: those with three dimensions, and more than one matrix
    (one vector for each position is stored as (1, n, d))."""
    return [name for name, W in module._parameters.items() if W is not None and W.dim() == 3 and len(W) > 1]


def are_experts(module: nn.Module) -> bool:
    """Whether `module` is known to hold the experts of a mixture: transformers marks such modules."""
    own = vars(module)
    library = type(module).__module__.partition(".")[0]
    marked = "is_transposed" in own and "_is_expert_parallel" in own
    return marked or (library == "transformers" and type(module).__name__.endswith("Experts"))


def enter_experts(module: nn.Module, layer: AdaptedLayer) -> None:
    """Make `module` one that computes with the update of `layer`, one of its weights that was adapted."""
    if not isinstance(module, ExpertsLoRA):
        module.__class__ = lora_class(ExpertsLoRA, type(module))
        if operation := getattr(torch.ops.transformers, "grouped_mm_fallback", None):
            follow_grouped(operation)
            follow_grouped(operation.default)
    assert isinstance(layer, ExpertWeightLoRA)
    module.add_module(layer.key, layer)
