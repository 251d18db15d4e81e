"""Experts together and apart: one update of a 3-D Parameter, or one of each expert's layers.

    together    <M>.gate_up_proj    A (E, R, in)   B (E, 2·k, R)        transformers 5, in memory
                <M>.down_proj
    apart       <M>.<e>.gate_proj   A (r, in)      B (k, r)             older models, and the files of nearly all
                <M>.<e>.up_proj     likewise
                <M>.<e>.down_proj                                       (Mixtral's w1, w3 and w2)

ΔW is the same in both. The two halves of a gate and an up projection have an update each when apart; together they need the
rank of both, and zeros where a half does not see a factor, unless they share A. On the way back, components that are zero in a
half are left out. The rows of the two halves follow one another, or alternate (gpt-oss).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from ..config import alpha_for
from ..tensors import same_bits
from .adapter import Adapter, check_adapter
from .experts_update import ExpertsUpdate
from .updates import LoRAUpdate

_GATE, _UP, _DOWN = "gate_proj", "up_proj", "down_proj"
BOTH = "gate_up_proj"
_LEAVES = {_GATE: _GATE, _UP: _UP, _DOWN: _DOWN, "w1": _GATE, "w3": _UP, "w2": _DOWN, "fc1": _GATE, "fc3": _UP, "fc2": _DOWN}
_APART = re.compile(r"(?P<module>.+)\.(?P<expert>\d+)\.(?P<leaf>" + "|".join(_LEAVES) + ")")


@dataclass(frozen=True)
class Stack:
    """How a module keeps its experts together: how many there are, whether gate and up are one Parameter, and whether the rows
    of the two alternate there."""

    experts: int
    fused: bool = True
    interleaved: bool = False


def in_form_of(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """`adapter` with its experts together or apart, as the tensors of these `shapes` have them: those of the files of a model.

    Names may differ in what is before `experts`.
    """
    sizes = {".".join(name.split(".")[-2:]): shape[0] for name, shape in shapes.items() if len(shape) == 3}
    together = [name for name, update in adapter.layers.items() if isinstance(update, ExpertsUpdate)]
    if any(".".join(name.split(".")[-2:]) not in sizes for name in together):
        return split_experts(adapter)
    modules = {module for name in adapter.layers if (module := module_of(name))}
    counts = {module: sizes.get(f"{module.rpartition('.')[2]}.{BOTH}") for module in modules}
    return stacked(adapter, {module: Stack(count) for module, count in counts.items() if count})


def module_of(name: str) -> str | None:
    """The module of experts in which `name` is a layer of one of them; None for any other layer.

    >>> module_of("layers.0.mlp.experts.3.up_proj"), module_of("layers.0.mlp.up_proj")
    ('layers.0.mlp.experts', None)
    """
    match = _APART.fullmatch(name)
    return match["module"] if match else None


# --- apart ----------------------------------------------------------------------------------------------------------


def split_experts(adapter: Adapter, interleaved: bool = False) -> Adapter:
    """An update of each expert's layers in the place of those of all: the form of older models and of most checkpoints.

    Args:
        adapter: An adapter with updates of experts' Parameters.
        interleaved: Whether the rows of gate and up alternate in `gate_up_proj`, as in gpt-oss.

    Returns:
        The same ΔW by the names `<module>.<expert>.gate_proj`, `up_proj` and `down_proj`; other layers as they are.

    Raises:
        ArgumentError: When `adapter` is not an adapter.

    Example:
        >>> update = lora.ExpertsUpdate(torch.ones(2, 1, 3), torch.ones(2, 8, 1), lora_alpha=1)
        >>> together = lora.Adapter(lora.LoRAConfig(), {"experts.gate_up_proj": update})
        >>> list(lora.split_experts(together).layers)
        ['experts.0.gate_proj', 'experts.0.up_proj', 'experts.1.gate_proj', 'experts.1.up_proj']
    """
    check_adapter(adapter)
    layers: dict[str, LoRAUpdate] = {}
    for name, update in adapter.layers.items():
        layers |= apart(name, update, interleaved) if isinstance(update, ExpertsUpdate) else {name: update}
    return replace(adapter, config=adapter.settings, layers=layers)


def apart(name: str, update: ExpertsUpdate, interleaved: bool = False, whole: bool = False) -> dict[str, LoRAUpdate]:
    """The updates of each expert's layers that `update`, of the Parameter `name`, stands for. whole: gate and up in one."""
    module, _, leaf = name.rpartition(".")
    found = {}
    for e, (B, A) in enumerate(update.products()):
        halves = {leaf: B}
        if leaf == BOTH and not whole:
            halves = {_GATE: B[::2], _UP: B[1::2]} if interleaved else dict(zip((_GATE, _UP), B.chunk(2), strict=True))
        for part, rows in halves.items():
            found[f"{module}.{e}.{part}"] = _without_zeros(update, A, rows) if len(halves) > 1 else _plain(update, A, rows)
    return found


def _plain(update: LoRAUpdate, A: Tensor, B: Tensor) -> LoRAUpdate:
    """These factors with the scaling of `update`."""
    lora_alpha = update.lora_alpha if len(A) == update.r else alpha_for(update.scaling, len(A), update.use_rslora)
    return LoRAUpdate(A.contiguous(), B.contiguous(), lora_alpha, update.use_rslora)


def _without_zeros(update: LoRAUpdate, A: Tensor, B: Tensor) -> LoRAUpdate:
    """The factors without components whose column of B is zero, where others are not."""
    kept = B.any(dim=0)
    return _plain(update, A[kept], B[:, kept]) if kept.any() else _plain(update, A, B)


# --- together -------------------------------------------------------------------------------------------------------


def stack_experts(adapter: Adapter, interleaved: bool = False) -> Adapter:
    """One update of all experts in the place of those of each: the other way round of `split_experts`.

    Args:
        adapter: An adapter with updates of each expert's layers.
        interleaved: Whether the rows of gate and up alternate in `gate_up_proj`, as in gpt-oss.

    Returns:
        The same ΔW by the names `<module>.gate_up_proj` and `down_proj`, for as many experts as the largest number says. An
        expert without an update gets factors of zero.

    Raises:
        ArgumentError: When `adapter` is not an adapter.

    Example:
        >>> layers = {f"experts.{e}.down_proj": lora.LoRAUpdate(torch.ones(1, 3), torch.ones(4, 1), 1) for e in range(2)}
        >>> together = lora.stack_experts(lora.Adapter(lora.LoRAConfig(), layers))
        >>> together.layers["experts.down_proj"].B.shape
        torch.Size([2, 4, 1])
    """
    check_adapter(adapter)
    return stacked(adapter, None, interleaved)


def stacked(adapter: Adapter, stacks: Mapping[str, Stack] | None, interleaved: bool = False) -> Adapter:
    """`stack_experts` for the modules of experts that are named, each as it keeps them; for all, where `stacks` is None."""
    modules: dict[str, dict[tuple[int, str], LoRAUpdate]] = {}
    layers: dict[str, LoRAUpdate] = {}
    for name, update in adapter.layers.items():
        match = _APART.fullmatch(name)
        if match is None or type(update) is not LoRAUpdate or (stacks is not None and match["module"] not in stacks):
            layers[name] = update
        else:
            modules.setdefault(match["module"], {})[int(match["expert"]), _LEAVES[match["leaf"]]] = update
    for module, updates in modules.items():
        stack = stacks[module] if stacks is not None else Stack(1 + max(e for e, _ in updates), interleaved=interleaved)
        layers |= {f"{module}.{leaf}": together for leaf, together in _together(updates, stack).items()}
    return replace(adapter, config=adapter.settings, layers=layers)


def _together(updates: Mapping[tuple[int, str], LoRAUpdate], stack: Stack) -> dict[str, ExpertsUpdate]:
    leaves = {leaf for _, leaf in updates}
    of_both = leaves & {_GATE, _UP} if stack.fused and _GATE in leaves else set()
    found = {}
    if of_both:
        found[BOTH] = _stacked([_joined(updates.get((e, _GATE)), updates.get((e, _UP)), stack) for e in range(stack.experts)])
    for leaf in sorted(leaves - of_both):
        found[leaf] = _stacked([updates.get((e, leaf)) for e in range(stack.experts)])
    return found


def _joined(gate: LoRAUpdate | None, up: LoRAUpdate | None, stack: Stack) -> LoRAUpdate | None:
    """The update of both halves of an expert."""
    given = gate or up
    if given is None:
        return None
    k = len(given.B)
    first, second = (half or replace(given, B=torch.zeros_like(given.B)) for half in (gate, up))
    s = first.scaling
    B_gate, B_up = first.B, second.B if second.scaling == s else second.B * (second.scaling / s)
    if same_bits(first.A, second.A):
        A = first.A
    else:
        A = torch.cat([first.A, second.A])
        B_gate = torch.cat([B_gate, B_gate.new_zeros(k, second.r)], dim=1)
        B_up = torch.cat([B_up.new_zeros(k, first.r), B_up], dim=1)
    B = torch.stack([B_gate, B_up], dim=1).flatten(0, 1) if stack.interleaved else torch.cat([B_gate, B_up])
    return LoRAUpdate(A, B, alpha_for(s, len(A), first.use_rslora), first.use_rslora)


def _stacked(updates: list[LoRAUpdate | None]) -> ExpertsUpdate:
    """The updates of the experts in one, filled with zeros to the largest rank."""
    given = [update for update in updates if update is not None]
    first, r = given[0], max(update.r for update in given)
    dtype_A = reduce(torch.promote_types, (update.A.dtype for update in given))
    dtype_B = reduce(torch.promote_types, (update.B.dtype for update in given))
    A = first.A.new_zeros(len(updates), r, first.A.shape[1], dtype=dtype_A)
    B = first.B.new_zeros(len(updates), len(first.B), r, dtype=dtype_B)
    for e, update in enumerate(updates):
        if update is not None:
            A[e, : update.r] = update.A
            B[e, :, : update.r] = update.B if update.scaling == first.scaling else update.B * (update.scaling / first.scaling)
    lora_alpha = first.lora_alpha if r == first.r else alpha_for(first.scaling, r, first.use_rslora)
    return ExpertsUpdate(A, B, lora_alpha, first.use_rslora)
