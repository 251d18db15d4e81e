"""LoRA on fused projections, such as query, key and value in one matrix: each chosen slice has an update of its own.

The output (..., Σ widths) is cut into slices; for n enabled ones A (n·r, d) stacks the first factors and B (Σ enabled
widths, r) the second ones. The forward pass is that of `LinearLoRA` with `slices`: one skinny product with A and one with the
blocks of B in their places. ΔW is formed only to be merged. Slices may differ in width, as in grouped-query attention.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..adapters.fused_update import FusedUpdate
from ..adapters.soundness import not_finite
from ..adapters.updates import LoRAUpdate
from ..config import truth_values
from ..errors import ConfigError, LayerError
from .inputs import by_torchs_name, takes_x
from .linear import Conv1DLoRA, LinearLoRA, transposable_forward


def slice_widths(out_features: int, enable_lora: Sequence[bool], widths: Sequence[int] = ()) -> tuple[int, ...]:
    """The widths of the slices that `enable_lora` chooses from: equal ones, unless `widths` says otherwise.

    Raises `ConfigError` when they do not make up the output.

    >>> slice_widths(12, [True, False, True]), slice_widths(12, [True, False, True], [8, 2, 2])
    ((4, 4, 4), (8, 2, 2))
    """
    n = len(truth_values(enable_lora))
    if not n:
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
    """LoRA for linear layers that fuse several projections.

    Example:
        >>> model = nn.ModuleDict({"qkv": nn.Linear(8, 24)})
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2, target_modules=["qkv"], enable_lora=[True, False, True]))
        >>> isinstance(model["qkv"], lora.layers.FusedLinearLoRA), model["qkv"].lora_A.shape, model["qkv"].lora_B.shape
        (True, torch.Size([4, 8]), torch.Size([16, 2]))
    """

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

    Shapes: x (..., in_features), y (..., out_features); for n enabled of m slices `lora_A` (n·r, in_features), whose rows r·i
    to r·(i+1) belong to the i-th enabled slice, and `lora_B` (n·out_features / m, r). With no slice enabled, which is 0.1's
    default, it is a plain linear layer, whose weight is not frozen.

    Args:
        in_features: As in `nn.Linear`.
        out_features: As in `nn.Linear`.
        r: The rank of each slice's update, 0 for none.
        lora_alpha: The numerator of the scaling.
        lora_dropout: The probability with which the update's input is dropped in training.
        enable_lora: Which slices of the output get an update.
        fan_in_fan_out: Store the weight as (in, out).
        merge_weights: Merge on `eval()`, unmerge on `train()`.
        **kwargs: Those of `nn.Linear`.

    Raises:
        ConfigError: When the length of `enable_lora` does not divide `out_features`, or another value is out of range.

    Example:
        >>> qkv = lora.MergedLinear(16, 3 * 16, r=2, lora_alpha=4, enable_lora=[True, False, True])
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
        self.enable_lora, self.widths = list(truth_values(enable_lora)), widths
        self.build(r, lora_alpha, lora_dropout, merge_weights)
        self.store_weight(fan_in_fan_out)

    @takes_x
    def forward(self, x: Tensor | None = None, **named: Tensor) -> Tensor:  # type: ignore[override]
        """y (..., out_features) for x (..., in_features), which torch calls `input`."""
        if x is None or (type(named) is dict and named):
            x = by_torchs_name(x, named)
        if not (self.has_own_product and self.acts):
            return LinearLoRA.forward(self, x)
        product = self.merge_AB()
        base: Tensor = self.base_forward(x)
        return base + self.lora_dropout(x) @ (product if self.fan_in_fan_out else product.t()) * self.scaling

    # --- what 0.1's layer is made of, for programs that call or override it -------------------------------------------

    has_own_product: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.has_own_product = (cls.merge_AB, cls.zero_pad) != (MergedLinear.merge_AB, MergedLinear.zero_pad)

    def effective_weight(self, W: Tensor) -> Tensor:
        """W + ΔW, ΔW by the subclass's own `merge_AB` where it has one."""
        if not self.has_own_product:
            return super().effective_weight(W)
        product = self.merge_AB()
        return (W.to(torch.promote_types(W.dtype, product.dtype)) + product * self.scaling).to(W.dtype)

    @property
    def update(self) -> LoRAUpdate:
        """The layer's update; `LayerError` where a subclass makes it of its factors in its own way."""
        if self.has_own_product:
            raise LayerError(
                f"{type(self).__name__} has a merge_AB of its own, which no adapter can hold; use lora_state_dict."
            )
        return super().update

    def update_problem(self) -> str | None:
        """Why the update cannot be merged into the base's weight, or None."""
        return not_finite(self.update_of(self.lora_A, self.lora_B)) if self.has_own_product else super().update_problem()

    @property
    def lora_ind(self) -> Tensor:
        """Which outputs belong to an enabled slice: truth values (out_features), on the weight's device."""
        rows = [on for width, on in zip(self.widths, self.enable_lora, strict=True) for _ in range(width)]
        return torch.tensor(rows, device=self.weight.device)

    @lora_ind.setter
    def lora_ind(self, value: Tensor) -> None:
        if not torch.equal(torch.as_tensor(value).cpu(), self.lora_ind.cpu()):
            raise ConfigError("lora_ind follows from enable_lora; build a MergedLinear with the slices that you want.")

    def zero_pad(self, x: Tensor) -> Tensor:
        """Put rows into their places in the output.

        Args:
            x: One row for each output of an enabled slice.

        Returns:
            (out_features, ...), zero in the other slices.
        """
        result = x.new_zeros((self.out_features, *x.shape[1:]))
        result[self.lora_ind] = x
        return result

    def merge_AB(self) -> Tensor:  # noqa: N802
        """B·A of all slices, without the scaling.

        Returns:
            A matrix in the shape of the weight, zero in slices that are not enabled.
        """
        n, r, d = sum(self.enable_lora), self.lora_B.shape[1], self.lora_A.shape[1]
        products = self.lora_B.view(n, len(self.lora_B) // n, r) @ self.lora_A.view(n, r, d)
        padded = self.zero_pad(products.flatten(0, 1))
        return padded.t() if self.fan_in_fan_out else padded

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickled state; 0.1 kept which rows are enabled, where we keep the widths of the slices."""
        state.pop("lora_ind", None)
        if "widths" not in state:
            state = state | {"widths": slice_widths(state["out_features"], state["enable_lora"])}
        super().__setstate__(state)

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """`nn.Linear`'s output, whichever way the weight is stored."""
        return transposable_forward(self, super().base_forward, args, kwargs)
