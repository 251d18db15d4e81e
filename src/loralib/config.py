"""The hyper-parameters of LoRA: one frozen value, checked when it is made.

    W' = W + s·B·A,   s = lora_alpha / r,   or lora_alpha / √r with `use_rslora`

Names mean what they mean in PEFT's `LoraConfig`. What belongs to a training run (learning rate, epochs …) is not here.
"""

import dataclasses
import json
import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from . import choices
from .choices import Bias, Factor
from .errors import ConfigError
from .patterns import Patterns
from .printing import short

ALL_LINEAR = "all-linear"
LARGEST_ALPHA = 3.4028234663852886e38  # of float32

T = TypeVar("T")

_OF_PYTHON = {int, float, bool}


def python_value(value: Any) -> Any:
    """`value` in Python's own types where it is a number, a truth value or an array of numpy's or torch's; else as it is."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def in_python(value: Any) -> Any:
    """`value`, or a tuple of such values, in Python's own types; the very object where it is in them."""
    if type(value) is not tuple:
        return value if type(value) in _OF_PYTHON else python_value(value)
    return value if all(type(item) in _OF_PYTHON for item in value) else tuple(python_value(item) for item in value)


def truth_values(mask: object) -> tuple[bool, ...]:
    """A mask in Python's own types; empty where it is not a sequence of truth values.

    >>> import torch
    >>> truth_values(torch.tensor([True, False])), truth_values([1, 0])
    ((True, False), ())
    """
    values = python_value(mask)
    found = tuple(python_value(on) for on in values) if isinstance(values, Sequence) else ()
    return found if all(isinstance(on, bool) for on in found) else ()


def check_rank(r: object, *, zero: bool = False) -> int:
    """The rank, if it is a positive integer (or 0 where `zero` allows it); `ConfigError` otherwise."""
    value = python_value(r)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < (0 if zero else 1):
        raise ConfigError(f"r={short(r)}: the rank must be {'0 (no LoRA) or ' if zero else ''}a positive integer, such as 8.")
    return int(value)


def check_alpha(lora_alpha: object) -> float:
    """`lora_alpha`, if it is a positive finite number; `ConfigError` otherwise."""
    value = python_value(lora_alpha)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not _is_positive(value):
        raise ConfigError(f"lora_alpha={short(lora_alpha)}: must be a positive number; the update is scaled by lora_alpha / r.")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _is_positive(value: numbers.Real) -> bool:
    """Whether a number is positive and finite, as a float."""
    try:
        return 0 < float(value) < math.inf
    except OverflowError:
        return False


def check_usable_alpha(lora_alpha: float) -> None:
    """`ConfigError` for a `lora_alpha` that float32, in which layers scale their updates, does not have."""
    if lora_alpha > LARGEST_ALPHA:
        raise ConfigError(f"lora_alpha={short(lora_alpha)}: is too large for float32; give a smaller one. Nothing was changed.")


def check_dropout(lora_dropout: object) -> float:
    """`lora_dropout`, if it is a probability below 1; `ConfigError` otherwise."""
    value = python_value(lora_dropout)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < 1:
        raise ConfigError(f"lora_dropout={short(lora_dropout)}: must be a probability in [0, 1), such as 0.1.")
    return float(value)


def check_bias(bias: object) -> Bias:
    """`bias`, if it is one of the three modes; `ConfigError` otherwise."""
    if bias not in choices.names(Bias):
        raise ConfigError(f"bias={short(bias)}: must be 'none', 'lora_only' or 'all'.")
    return bias  # type: ignore[return-value]


def check_mask(enable_lora: object) -> tuple[bool, ...]:
    """`enable_lora`, if it says True or False for each slice and True for one at least; `ConfigError` otherwise."""
    mask = truth_values(enable_lora)
    if not any(mask):
        raise ConfigError(f"enable_lora={short(enable_lora)}: must enable at least one slice, such as [True, False, True].")
    return mask


def check_widths(widths: object) -> tuple[int, ...]:
    """The widths of slices, if they are positive integers; `ConfigError` otherwise."""
    values = python_value(widths)
    slices = tuple(python_value(width) for width in values) if isinstance(values, Sequence) else ()
    if not slices or not all(type(width) is int and width > 0 for width in slices):
        raise ConfigError(f"slice_widths: {short(widths)} must be positive integers, such as [2048, 512, 512].")
    return slices


def lora_scaling(r: int, lora_alpha: float, use_rslora: bool = False) -> float:
    """The factor s of the update s·B·A: lora_alpha / r (paper, section 4.1), or lora_alpha / √r (rsLoRA, 2312.03732).

    >>> lora_scaling(8, 16), lora_scaling(16, 8, use_rslora=True)
    (2.0, 2.0)
    """
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def alpha_for(scaling: float, r: int, use_rslora: bool = False) -> float:
    """The `lora_alpha` with which rank `r` has the factor `scaling`: the other way round of `lora_scaling`.

    >>> alpha_for(2.0, 8), alpha_for(2.0, 16, use_rslora=True)
    (16.0, 8.0)
    """
    return scaling * (math.sqrt(r) if use_rslora else r)


def _names(value: str | Sequence[str] | None, field: str) -> tuple[str, ...]:
    if value is None:
        return ()
    is_list = isinstance(value, Collection) and not isinstance(value, (str, Mapping))
    if not is_list or not all(isinstance(name, str) and name for name in value):
        raise ConfigError(f"{field}={short(value)}: must be a list of names, such as ['query', 'value'].")
    return tuple(value)


def _pattern(pattern: object, field: str, check: Callable[[object], T]) -> Patterns[T]:
    """The pattern with its values checked; `ConfigError` when it is none."""
    if not isinstance(pattern, Mapping):
        raise ConfigError(f"{field}={short(pattern)}: must be a dictionary {{name or regular expression: value}}.")
    checked = {key: check(value) for key, value in pattern.items()}
    return pattern if isinstance(pattern, Patterns) and pattern == checked else Patterns(checked, field)


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """LoRA hyper-parameters: rank, scaling, target modules and what else is trained.

    Immutable, and checked when it is made. Fields mean what they mean in PEFT's `LoraConfig`.

    Args:
        r: The rank of the update.
        lora_alpha: The numerator of the scaling, lora_alpha / r (paper, section 4.1).
        lora_dropout: The probability with which the update's input is dropped in training.
        target_modules: Which layers: a list of names, each of which must equal a layer's name or its last dotted parts; one
            regular expression that must match whole names; or "all-linear": every linear layer but the output embedding, those
            in `modules_to_save`, a fresh classification head, and what no update can reach.
        exclude_modules: Layers to skip; same syntax as `target_modules`. ["conv1"] also skips "block.conv1"; the expression
            "conv1" skips the top one only.
        modules_to_save: Modules trained in full with the factors and saved with them, such as a new head.
        bias: Which biases are trained too: "none", "lora_only" (those of adapted layers), or "all" (all parameters named
            `bias`).
        rank_pattern: {name or regular expression: r} for layers that differ.
        alpha_pattern: {name or regular expression: lora_alpha} for layers that differ.
        use_rslora: Scale by lora_alpha / √r (rsLoRA, 2312.03732).
        fan_in_fan_out: The layers store their weight as (in, out), as transformers' `Conv1D` does. It is found by the layer's
            type, and is an error where it is wrong.
        enable_lora: For layers that fuse several projections, which slices of the output get an update, such as [True, False,
            True] for query and value: a list for all targets, or {name or regular expression: list}.
        slice_widths: {name or regular expression: widths} where the slices are not of equal width.
        target_parameters: Which 3-D Parameters, one matrix for each expert of a mixture, get updates: names, each of which must
            equal a Parameter's name or its last dotted parts, such as ["experts.gate_up_proj"]. "all-linear" finds those of
            transformers' mixtures by itself.
        share_expert_factor: "A" or "B" where all experts share that factor; None for a pair of factors each.
        divide_expert_rank: Give experts the rank r / (the number of experts that a token is sent to), at least 1, so that a
            token meets as much of an update there as elsewhere. What `rank_pattern` names is not divided.

    Raises:
        ConfigError: When a value, or a combination of them, cannot work.

    Example:
        >>> lora.LoRAConfig(r=8, lora_alpha=16, target_modules=["query", "value"]).scaling
        2.0
        >>> lora.LoRAConfig(r=0)
        Traceback (most recent call last):
        loralib.errors.ConfigError: r=0: the rank must be a positive integer, such as 8.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: str | Sequence[str] = ALL_LINEAR
    exclude_modules: str | Sequence[str] = ()
    modules_to_save: Sequence[str] = ()
    bias: Bias = "none"
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    enable_lora: Sequence[bool] | Mapping[str, Sequence[bool]] = ()
    slice_widths: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    target_parameters: Sequence[str] = ()
    share_expert_factor: Factor | None = None
    divide_expert_rank: bool = False

    def __post_init__(self) -> None:
        checked = {"r": check_rank(self.r), "lora_alpha": check_alpha(self.lora_alpha)}
        checked["lora_dropout"] = check_dropout(self.lora_dropout)
        check_bias(self.bias)
        flags = {field: python_value(getattr(self, field)) for field in ("use_rslora", "fan_in_fan_out", "divide_expert_rank")}
        for field, flag in flags.items():
            if not isinstance(flag, bool):
                raise ConfigError(f"{field}={short(flag)}: must be True or False.")
        if self.share_expert_factor not in (None, *choices.names(Factor)):
            raise ConfigError(f"share_expert_factor={short(self.share_expert_factor)}: must be 'A', 'B' or None.")
        mask = python_value(self.enable_lora)
        masks = mask if isinstance(mask, Mapping) else {".*": mask} if mask else {}
        frozen: dict[str, object] = checked | {
            **flags,
            "enable_lora": _pattern(masks, "enable_lora", check_mask),
            "slice_widths": _pattern(self.slice_widths, "slice_widths", check_widths),
            "modules_to_save": _names(self.modules_to_save, "modules_to_save"),
            "target_parameters": _names(self.target_parameters, "target_parameters"),
            "rank_pattern": _pattern(self.rank_pattern, "rank_pattern", check_rank),
            "alpha_pattern": _pattern(self.alpha_pattern, "alpha_pattern", check_alpha),
        }
        for field in ("target_modules", "exclude_modules"):
            if not isinstance(value := getattr(self, field), str):
                frozen[field] = _names(value, field)
        for field, value in frozen.items():
            object.__setattr__(self, field, value)

    @property
    def masks(self) -> Mapping[str, Sequence[bool]]:
        """`enable_lora` by name or regular expression."""
        assert isinstance(self.enable_lora, Mapping)
        return self.enable_lora

    @property
    def scaling(self) -> float:
        """The scaling of layers that are not in `rank_pattern` or `alpha_pattern`."""
        return lora_scaling(self.r, self.lora_alpha, self.use_rslora)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain lists, dictionaries and numbers, ready for JSON or YAML.

        Returns:
            The fields by name, from which `LoRAConfig(**fields)` makes the same configuration.
        """
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict() | {"lora_alpha": float(self.lora_alpha)}, sort_keys=True))

    def __reduce__(self) -> tuple[object, ...]:
        return _config_from_dict, (self.to_dict(),)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _config_from_dict(values: dict[str, Any]) -> LoRAConfig:
    return LoRAConfig(**values)
