"""LoRA on fused projections, such as query, key and value in one matrix: each chosen slice has an update of its own.

The output (..., Σ widths) is cut into slices; for n enabled ones A (n·r, d) stacks the first factors and B (Σ enabled
widths, r) the second ones. The forward pass is that of `LinearLoRA` with `slices`: one skinny product with A and one with the
blocks of B in their places. ΔW is formed only to be merged. Slices may differ in width, as in grouped-query attention.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from .. import ops
from ..adapters.fused_update import FusedUpdate
from ..adapters.updates import LoRAUpdate
from ..errors import ConfigError
from .linear import Conv1DLoRA, LinearLoRA, transposable_forward


def slice_widths(out_features: int, enable_lora: Sequence[bool], widths: Sequence[int] = ()) -> tuple[int, ...]:
    """The widths of the slices that `enable_lora` chooses from: equal ones, unless `widths` says otherwise.

    Raises `ConfigError` when they do not make up the output.

    >>> slice_widths(12, [True, False, True]), slice_widths(12, [True, False, True], [8, 2, 2])
    ((4, 4, 4), (8, 2, 2))
    """
    n = len(enable_lora)
    if not n or not all(isinstance(on, bool) for on in enable_lora):
        raise ConfigError(f"enable_lora={enable_lora!r}: must say True or False for each slice, such as [True, False, True].")
    if not widths:
        if out_features % n:
            raise ConfigError(
                f"enable_lora={list(enable_lora)} cuts the output into {n} equal slices, and {n} does not divide "
                f"out_features={out_features}; give the widths of unequal slices, or a mask of another length."
            )
        return (out_features // n,) * n
    if len(widths) != n or sum(widths) != out_features or min(widths) < min(1, out_features):
        raise ConfigError(
            f"slice widths {list(widths)} do not cut out_features={out_features} into the {n} slices of "
            f"enable_lora={list(enable_lora)}."
        )
    return tuple(widths)


class FusedLinearLoRA(LinearLoRA):
    """LoRA for linear layers that fuse several projections."""

    update_classes = (FusedUpdate,)
    own_attributes = structure_fields = ("enable_lora", "widths")
    enable_lora: Sequence[bool]
    widths: tuple[int, ...]

    @classmethod
    def structure(cls, source: Any) -> dict[str, Any]:
        """Which slices have updates, and how wide all are."""
        return {"enable_lora": tuple(source.enable_lora), "widths": source.widths}

    def own_form(self, update: LoRAUpdate) -> LoRAUpdate:
        """An update over the full width, as other libraries store that of some slices, is cut into those slices again."""
        own = self.update
        assert isinstance(own, FusedUpdate)
        return own.like_plain(update) or update

    @property
    def slices(self) -> ops.Slices:  # type: ignore[override]
        """The slices of the output."""
        return ops.Slices(self.widths, tuple(self.enable_lora))

    @classmethod
    def factor_shapes(cls, layer: nn.Module, r: int, **structure: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A (n·r, in), B (sum of the enabled widths, r)."""
        d, k = cls.features(layer)
        enable_lora = structure["enable_lora"]
        widths = slice_widths(k, enable_lora, structure["widths"])
        return (sum(enable_lora) * r, d), (sum(width for width, on in zip(widths, enable_lora, strict=True) if on), r)

    @classmethod
    def make_update(
        cls, layer: nn.Module, A: Tensor, B: Tensor, lora_alpha: float, use_rslora: bool, **structure: Any
    ) -> LoRAUpdate:
        """The factors as an update of the slices of a layer like `layer`."""
        widths = slice_widths(cls.features(layer)[1], structure["enable_lora"], structure["widths"])
        return FusedUpdate(A, B, lora_alpha, use_rslora, structure["enable_lora"], widths)


class Conv1DFusedLoRA(FusedLinearLoRA, Conv1DLoRA):
    """LoRA for transformers' `Conv1D` where it fuses several projections, as GPT-2's `c_attn` does."""


class MergedLinear(FusedLinearLoRA, nn.Linear):  # type: ignore[misc]
    """A linear layer that fuses `len(enable_lora)` projections of equal width, with an update on each that is enabled.

    Shapes: x (..., in_features), y (..., out_features); for n enabled of m slices `lora_A` (n·r, in_features), whose rows
    r·i to r·(i+1) belong to the i-th enabled slice, and `lora_B` (n·out_features / m, r). The other parameters are those of
    `Linear`. With no slice enabled, which is 0.1's default, it is a plain linear layer, whose weight is not frozen.
    Raises `ConfigError` when the length of `enable_lora` does not divide `out_features`, and for values that cannot work.

    >>> import torch
    >>> qkv = MergedLinear(16, 3 * 16, r=2, lora_alpha=4, enable_lora=[True, False, True])
    >>> qkv(torch.zeros(3, 16)).shape
    torch.Size([3, 48])
    >>> qkv.lora_A.shape, qkv.lora_B.shape
    (torch.Size([4, 16]), torch.Size([32, 2]))
    """

    base_class: ClassVar[type[nn.Module]] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        enable_lora: Sequence[bool] = (False,),
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **kwargs: Any,
    ):
        widths = slice_widths(out_features, enable_lora)
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        self.enable_lora, self.widths = list(enable_lora), widths
        self.build(r, lora_alpha, lora_dropout, merge_weights)
        self.store_weight(fan_in_fan_out)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickled state; 0.1 kept which rows are enabled, where we keep the widths of the slices."""
        state.pop("lora_ind", None)
        if "widths" not in state:
            state = state | {"widths": slice_widths(state["out_features"], state["enable_lora"])}
        super().__setstate__(state)

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """`nn.Linear`'s output, whichever way the weight is stored."""
        return transposable_forward(self, super().base_forward, args, kwargs)
