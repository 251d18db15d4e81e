"""Targets by what layers do: query, key, value, output of attention, and the MLP, whatever a model calls them.

GPT-2 keeps query, key and value in one fused layer, of which LoRA adapts the slices (the paper's GPT-2 recipe, section 5.4,
adapts query and value). `architectures` has the names.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from .. import patterns
from ..architectures import DECODERS, ENCODERS, FUSED
from ..errors import ConfigError
from ..layers import is_linear
from .survey import Survey


def role_targets(model: nn.Module, roles: Sequence[str]) -> dict[str, Any]:
    """The `target_modules` and `enable_lora` of a `LoRAConfig` that adapts the layers of `model` with these roles.

    Args:
        model: A transformers model; its `config.model_type` says which names its layers have.
        roles: Some of `architectures.ROLES`.

    Returns:
        `target_modules`, the full names of the layers, and for fused projections `enable_lora`, their slices.

    Raises:
        ConfigError: For a model type whose layers are not known here, or a fused projection of another width than known.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    table = ENCODERS.get(kind) or DECODERS.get(kind)
    if table is None:
        raise ConfigError(
            f"which layers of a {kind} model are {', '.join(roles)} is not known; "
            "give --target-modules: their names, or all-linear."
        )
    endings = {ending: role for role, names in table.items() for ending in names}
    linear = [name for name, module in Survey(model).modules.items() if is_linear(module)]
    targets = [name for name in linear if endings.get(_longest(name, endings)) in roles]
    fused, parts = FUSED.get(kind, ("", ()))
    mask = [part in roles for part in parts]
    if not any(mask):
        return {"target_modules": targets}
    whole = [name for name in linear if patterns.ends_with(name, fused)]
    for name in whole:
        _check_parts(name, model.get_submodule(name), len(parts))
    return {
        "target_modules": [name for name in linear if name in targets or name in whole],
        "enable_lora": {patterns.exactly(name): mask for name in whole},
    }


def _check_parts(name: str, layer: nn.Module, parts: int) -> None:
    """`ConfigError` unless the output of a fused projection is `parts` times as wide as its input."""
    W = layer.weight
    assert isinstance(W, Tensor)
    if sorted(W.shape) != [min(W.shape), parts * min(W.shape)]:
        raise ConfigError(
            f"{name!r} has a weight of {tuple(W.shape)}, which does not fuse {parts} projections of equal width; "
            "give --target-modules, with enable_lora and slice_widths."
        )


def _longest(name: str, endings: Iterable[str]) -> str:
    """The longest of the endings that `name` has, or "" (`output.dense` is another layer than `attention.output.dense`)."""
    return max((ending for ending in endings if patterns.ends_with(name, ending)), key=len, default="")
