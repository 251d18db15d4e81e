"""An adapter of the difference between two models: what fine-tuning changed, brought to low rank.

    ΔW = W_tuned − W_base ≈ B·A     by the leading part of its SVD, the best approximation of that rank (Eckart and Young 1936)

Layer by layer, so that only a few copies of one weight are in memory. Weights that do not differ are left out; what is no
matrix of a layer (biases, norms, running statistics), or is not in the base at all (a new head), is taken over in full.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import patterns
from ..adapters import algebra, low_rank
from ..adapters.adapter import Adapter
from ..adapters.convolution_updates import ConvolutionUpdate
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.updates import LoRAUpdate
from ..choices import Bias
from ..config import LoRAConfig, check_rank
from ..errors import AlgebraError, ConfigError
from ..formats.validation import FLOATS
from ..surgery.trainable import is_bias
from ..tensors import same_bits, without_autocast
from .base_weights import Source, Weights, weights_of
from .layouts import Located


@dataclass(frozen=True)
class Found:
    """What differs in one tensor, or a part of it: an update with the fraction of ‖ΔW‖² that it keeps, or the tensor in full.

    norm: ‖ΔW‖ of the difference. done, total: tensors looked at, and in all.
    """

    name: str
    update: LoRAUpdate | None
    tensor: Tensor | None
    kept: float
    norm: float
    done: int
    total: int


@without_autocast
def difference(
    tuned: Source,
    base: Source,
    r: int | None = None,
    energy: float | None = None,
    *,
    target_modules: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """Extract an adapter from the difference of two models.

        ΔW = W_tuned − W_base ≈ B·A, by the leading part of its SVD (Eckart and Young 1936)

    Args:
        tuned: The fine-tuned model, or the folder or file of its weights, which is read lazily.
        base: The model that it was made from, likewise.
        r: The rank of every update.
        energy: The fraction of ‖ΔW‖²_F to keep, by the smallest rank that does; with `r`, the smaller of the two ranks.
        target_modules: Layers that may get an update; same syntax as in `LoRAConfig`. Default: all that differ. What differs
            elsewhere is taken over in full.
        exclude_modules: Layers to skip; same syntax.
        dtype: Of the factors.

    Returns:
        The adapter that makes `tuned` of `base`.

    Raises:
        ConfigError: When neither `r` nor `energy` is given, or one of them is out of range.
        AlgebraError: When the two have other shapes, do not differ, or hold quantized weights.
        FormatError: When a folder or a file holds quantized weights, or none.
        LayerError: When a layer of a model carries a LoRA update.
        TargetError: For a pattern that matches nothing.
        ArgumentError: When `tuned` or `base` is neither a model nor a path.

    Example:
        >>> base, tuned = nn.Sequential(nn.Linear(6, 5)), nn.Sequential(nn.Linear(6, 5))
        >>> _ = tuned.load_state_dict(base.state_dict())
        >>> with torch.no_grad():
        ...     _ = tuned[0].weight.addr_(torch.ones(5), torch.ones(6))
        >>> lora.difference(tuned, base, energy=0.999).layers["0"].r
        1
    """
    found = list(
        differences(tuned, base, r, energy, target_modules=target_modules, exclude_modules=exclude_modules, dtype=dtype)
    )
    return as_adapter(found, f"the difference of {_called(tuned)} and {_called(base)}")


def differences(
    tuned: Source,
    base: Source,
    r: int | None = None,
    energy: float | None = None,
    *,
    target_modules: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> Iterator[Found]:
    """What `difference` is made of, one after the other, as it is computed."""
    if r is None and energy is None:
        raise ConfigError("difference() needs a rank r, or the fraction of the squared norm to keep, such as energy=0.99.")
    if r is not None:
        check_rank(r)
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"energy={energy!r}: must be the fraction of the squared norm to keep, such as 0.99.")
    new = weights_of(tuned)
    old = _renamed(new, weights_of(base))
    _check_shapes(new, old)
    chosen = _chosen(new, target_modules, exclude_modules)
    for done, name in enumerate(new.shapes, 1):
        here = (done, len(new.shapes))
        if name not in old.shapes:
            yield Found(name, None, new.tensor(name).detach().clone(), 1.0, float("nan"), *here)
            continue
        now, before = new.tensor(name).detach(), old.tensor(name).detach()
        if same_bits(now, before):
            continue
        if name not in chosen:
            yield Found(name, None, now.clone(), 1.0, float((now.double() - before.double()).norm()), *here)
            continue
        _check_floats(name, now, before)
        for layer, located in chosen[name].items():
            part = _approximated(layer, located, now, before, r, energy, dtype)
            if part is not None:
                yield Found(layer, part[0], None, part[1], part[2], *here)


def as_adapter(found: list[Found], source: str = "") -> Adapter:
    """The adapter that consists of all that was found; `AlgebraError` when that is nothing."""
    layers = {item.name: item.update for item in found if item.update is not None}
    tensors = {item.name: item.tensor for item in found if item.tensor is not None}
    if not layers and not tensors:
        raise AlgebraError("The two models do not differ, so there is nothing to make an adapter of.")
    if not layers:
        raise AlgebraError(f"The two models differ in no weight of a layer, only in {', '.join(sorted(tensors)[:3])}.")
    bias: Bias = "none"
    modules: dict[str, None] = {}
    for name in tensors:
        module = name.rpartition(".")[0]
        if is_bias(name) and module in layers:
            bias = "lora_only"
        else:
            modules[module or name] = None
    return Adapter(LoRAConfig(modules_to_save=tuple(modules), bias=bias), layers, tensors, source=source)


def _called(source: Source) -> str:
    return type(source).__name__ if isinstance(source, torch.nn.Module) else str(source)


def _renamed(new: Weights, old: Weights) -> Weights:
    """`old` by the names that `new` has: one of them may be a part of the other's model, and lack its prefix (`bert.`)."""
    offs = {name.partition(".")[0] + "." for name in old.shapes}
    changes = [("", ""), *(("", name.partition(".")[0] + ".") for name in new.shapes), *((off, "") for off in offs)]

    def held(change: tuple[str, str]) -> dict[str, str]:
        off, on = change
        return {on + name[len(off) :]: name for name in old.shapes if name.startswith(off)}

    shared = {change: len(held(change).keys() & new.shapes.keys()) for change in dict.fromkeys(changes)}
    best = max(shared, key=lambda change: (shared[change], change == ("", "")))
    names = held(best)
    return replace(
        old, shapes={name: old.shapes[own] for name, own in names.items()}, tensor=lambda name: old.tensor(names[name])
    )


def _check_shapes(new: Weights, old: Weights) -> None:
    shared = [name for name in new.shapes if name in old.shapes]
    if 2 * len(shared) <= len(new.shapes):
        strange = next((name for name in new.shapes if name not in old.shapes), "none")
        raise AlgebraError(
            f"{old.what} has only {len(shared)} of the {len(new.shapes)} tensors of {new.what} (not {strange!r}, for one); "
            "compare models of one class, or their base models."
        )
    if problems := [f"{n}: {new.shapes[n]} and {old.shapes[n]}" for n in shared if new.shapes[n] != old.shapes[n]]:
        listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise AlgebraError(f"{new.what} and {old.what} have tensors of other shapes: {listed}; resize the base model first.")


def _check_floats(name: str, *tensors: Tensor) -> None:
    """`AlgebraError` when the weight `name` of a layer is quantized in one of the two models."""
    if other := [tensor.dtype for tensor in tensors if tensor.dtype not in FLOATS]:
        raise AlgebraError(
            f"{name!r} is stored as {other[0]}, whose numbers mean something only with their scale; compare the models "
            "that were quantized."
        )


def _chosen(
    new: Weights, target_modules: str | Sequence[str] | None, exclude_modules: str | Sequence[str]
) -> dict[str, dict[str, Located]]:
    """The layers that may get an update, by the tensors that their weights are in."""
    layers = list(new.layers)
    kept = set(layers if target_modules is None else patterns.match(layers, target_modules, "target_modules", new.what))
    if exclude_modules:
        kept -= set(patterns.match(layers, exclude_modules, "exclude_modules", new.what))
    found: dict[str, dict[str, Located]] = {}
    for layer, located in new.layers.items():
        if layer in kept:
            found.setdefault(located.tensor, {})[layer] = located
    return found


@without_autocast
def _approximated(
    layer: str, located: Located, now: Tensor, before: Tensor, r: int | None, energy: float | None, dtype: torch.dtype
) -> tuple[LoRAUpdate, float, float] | None:
    """The update, the fraction of ‖ΔW‖² that it keeps, and ‖ΔW‖; None where nothing differs."""
    delta = located.layout.to_canonical(now).double() - located.layout.to_canonical(before).double()
    total = float(delta.square().sum())
    if total == 0:
        return None
    if not torch.isfinite(delta).all():
        raise AlgebraError(f"{layer}: the difference is not finite; one of the two holds NaN or infinite numbers.")
    if located.kind is ExpertsUpdate:
        parts = [low_rank.leading(own, r, energy) for own in delta.unbind(0)]
        kept = sum(float(part.S.square().sum()) for part in parts) / total
        return _of_experts(parts, dtype), min(1.0, kept), total**0.5
    svd = low_rank.leading(delta.flatten(1), r, energy)
    kept = min(1.0, float(svd.S.square().sum()) / total)
    return _update(located, svd, delta.shape[1:], dtype), kept, total**0.5


def _of_experts(parts: Sequence[low_rank.SVD], dtype: torch.dtype) -> ExpertsUpdate:
    """The update, with s = 1, of experts whose ΔW the `parts` describe; all have the largest of their ranks."""
    width = max(1, *(len(part.S) for part in parts))
    pairs = [algebra.fitted(part, width, dtype, dtype) for part in parts]
    return ExpertsUpdate(torch.stack([A for _, A in pairs]), torch.stack([B for B, _ in pairs]), width)


def _update(located: Located, svd: low_rank.SVD, inner: tuple[int, ...], dtype: torch.dtype) -> LoRAUpdate:
    """The update, with s = 1, whose ΔW (out, *inner) is what `svd` describes."""
    B, A = (factor.to(dtype).contiguous() for factor in svd.factors())
    A = A.reshape(-1, *inner)
    if located.kind is not ConvolutionUpdate:
        return located.kind(A, B, len(A))
    B = B.reshape(*B.shape, *[1] * (len(inner) - 1))
    return ConvolutionUpdate(A, B, len(A), groups=located.groups, transposed=bool(located.layout.deconvolution))
