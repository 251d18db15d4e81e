"""Experts in PEFT's layout: the factors of all experts of a Parameter as two matrices.

    A (E·r, in)    the rows of one expert after those of another
    B (out, r·E)   rank-major: column i·E + e is column i of expert e

The Parameter has no name in the file. PEFT wraps the module once for each Parameter that is a target, in the order in which
the module has them, so that the first is in the innermost `base_layer`; `target_parameters` of the configuration names them.

What other versions and programs write has the same names:

    exchanged       PEFT 0.17 and 0.18: A is on the first dimension of each stored matrix, B on the second, whichever is `in`
    expert-major    Unsloth until September 2026: column e·r + i of B is column i of expert e

`peft_version` tells them apart, and Unsloth's `lora_B_layout`. A file with neither is not read until somebody says which it
is, as shapes do not. In files of the first kind, the shapes of a mixture's two Parameters say whether its
matrices are stored as (in, out), which no exchange touches.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import patterns
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.updates import LoRAUpdate
from ..architectures import EXPERT_PARAMETERS
from ..choices import ExpertLayout
from ..config import LoRAConfig
from ..errors import FormatError
from .peft_attention import plain
from .peft_names import BASE, LINEAR
from .validation import NOT_WRITTEN, made, parts_of

VERSION, _OLD = "0.19.0", "0.18.1"  # whose layouts are written
_MARK = "lora_B_layout"
_MARKS: Mapping[str, ExpertLayout] = {"rank_major": "rank-major", "grouped_by_expert": "expert-major"}
_ASK = (
    "say which program wrote it: load(path, layout='rank-major') for PEFT from 0.19 on, 'exchanged' for 0.17 and 0.18, "
    "'expert-major' for Unsloth before its mark",
    "say which program wrote it: --layout rank-major for PEFT from 0.19 on, exchanged for 0.17 and 0.18, expert-major for "
    "Unsloth before its mark",
)

Factors = Mapping[str, dict[str, Tensor]]


# --- read -----------------------------------------------------------------------------------------------------------


def layout_of(where: Path | str, values: Mapping[str, Any], asked: ExpertLayout | None) -> ExpertLayout:
    """The layout of the experts of an adapter with this configuration; `FormatError` when nothing says it."""
    if asked is not None:
        return asked
    if (mark := values.get(_MARK)) is not None:
        if mark not in _MARKS:
            raise FormatError(f"{where}: {_MARK}={mark!r:.80} is none of {', '.join(_MARKS)}", *_ASK)
        return _MARKS[mark]
    numbers = str(values.get("peft_version") or "").split(".")[:2]
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers):
        raise FormatError(
            f"{where} holds updates of experts, and neither its peft_version nor {_MARK} says how they lie", *_ASK
        )
    return "rank-major" if [int(number) for number in numbers] >= [0, 19] else "exchanged"


def taken(
    where: str, factors: Factors, config: LoRAConfig, values: Mapping[str, Any], asked: ExpertLayout | None
) -> tuple[dict[str, LoRAUpdate], Factors]:
    """The updates of experts among `factors`, by the names of their Parameters, and the factors that are left. values: of
    PEFT's configuration. asked: the layout, where it is given."""
    groups: dict[str, list[str]] = {}
    for name in factors:
        groups.setdefault(plain(name), []).append(name)
    found: dict[str, LoRAUpdate] = {}
    used: set[str] = set()
    for module, names in groups.items():
        parameters = _parameters(module, config.target_parameters)
        if not parameters:
            continue
        used |= set(names)
        layout = layout_of(where, values, asked)
        ordered = sorted(names, key=lambda name: -name.split(".").count(BASE))  # the innermost first
        if len(ordered) != len(parameters):
            raise FormatError(
                f"{where}: {module!r} has updates of {len(ordered)} Parameters, and target_parameters names {len(parameters)} "
                f"in it: {', '.join(parameters)}."
            )
        stored = {
            f"{module}.{parameter}": parts_of(f"{where}: {module!r}", factors[name], LINEAR)
            for parameter, name in zip(_in_order(where, module, parameters), ordered, strict=True)
        }
        swapped = layout == "exchanged" and _is_exchanged(where, module, list(stored.values()))
        found |= {name: _update(where, name, parts, config, layout, swapped) for name, parts in stored.items()}
    if config.target_parameters and not found:
        raise FormatError(f"{where} holds no factors for target_parameters={list(config.target_parameters)!r:.80}.")
    return found, {name: parts for name, parts in factors.items() if name not in used}


def _parameters(module: str, targets: Iterable[str]) -> list[str]:
    """The Parameters of `module` that are targets."""
    named = [target.rpartition(".") for target in targets]
    return list(dict.fromkeys(leaf for owner, _, leaf in named if patterns.ends_with(module, owner) or not owner))


def _in_order(where: str, module: str, parameters: list[str]) -> list[str]:
    """`parameters` as modules have them."""
    if len(parameters) > 1 and (strange := [name for name in parameters if name not in EXPERT_PARAMETERS]):
        raise FormatError(
            f"{where}: which of {', '.join(parameters)} in {module!r} each update is for is not said in the file, and the "
            f"order of {strange[0]!r} is not known; save the updates of one Parameter each."
        )
    return sorted(parameters, key=EXPERT_PARAMETERS.index) if len(parameters) > 1 else parameters


def _is_exchanged(where: str, module: str, updates: list[dict[str, Tensor]]) -> bool:
    """Whether A and B of these updates, of one module, belong to the other side: not where matrices are stored as (in, out)."""
    sides = [(parts["lora_A"].shape[-1], parts["lora_B"].shape[0]) for parts in updates]
    if len(sides) == 2:
        (a_1, b_1), (a_2, b_2) = sides
        if a_1 == b_2 and b_1 == 2 * a_2:  # of hidden, 2·inner; of inner, hidden
            return False
        if b_1 == a_2 and a_1 == 2 * b_2:
            return True
    if any(a == b for a, b in sides):
        raise FormatError(f"{where}: {module!r} has square matrices, in which PEFT 0.17 and 0.18 may mean either side", *_ASK)
    return True


def _update(
    where: str, name: str, parts: Mapping[str, Tensor], config: LoRAConfig, layout: ExpertLayout, swapped: bool
) -> LoRAUpdate:
    where, r = f"{where}: experts {name!r}", patterns.lookup(config.rank_pattern, name, config.r)
    A, B = parts["lora_A"], parts["lora_B"]
    if A.dim() != 2 or B.dim() != 2 or len(A) != B.shape[1] or not len(A) or len(A) % r:
        raise FormatError(
            f"{where}: lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} are not factors of rank {r} for as many experts."
        )
    E = len(A) // r
    A = A.reshape(E, r, -1)
    B = B.reshape(-1, E, r).permute(1, 0, 2) if layout == "expert-major" else B.reshape(-1, r, E).permute(2, 0, 1)
    if swapped:
        A, B = B.transpose(1, 2), A.transpose(1, 2)
    lora_alpha = patterns.lookup(config.alpha_pattern, name, config.lora_alpha)
    tensors = {"lora_A": A.contiguous(), "lora_B": B.contiguous()}
    return made(where, ExpertsUpdate, tensors, lora_alpha, config.use_rslora)


# --- write ----------------------------------------------------------------------------------------------------------


def said(layout: ExpertLayout) -> dict[str, str]:
    """The fields of PEFT's configuration that say the layout."""
    marks = {of: mark for mark, of in _MARKS.items()}
    return {"peft_version": _OLD if layout == "exchanged" else VERSION} | (
        {_MARK: marks[layout]} if layout == "expert-major" else {}
    )


def stored(updates: Mapping[str, ExpertsUpdate], layout: ExpertLayout = "rank-major") -> dict[str, Tensor]:
    """The factors of experts by PEFT's names; those that all experts share are written for each. "exchanged" is written for
    matrices that are stored as (out, in). `FormatError` for Parameters whose order is not known."""
    modules: dict[str, list[str]] = {}
    for name in updates:
        module, _, parameter = name.rpartition(".")
        modules.setdefault(module, []).append(parameter)
    found: dict[str, Tensor] = {}
    for module, parameters in modules.items():
        if not module:
            raise FormatError(f"{parameters[0]!r} is a Parameter of the model itself, which PEFT cannot adapt. {NOT_WRITTEN}")
        if len(parameters) > 1 and (strange := [name for name in parameters if name not in EXPERT_PARAMETERS]):
            raise FormatError(
                f"{module!r} has updates of {', '.join(parameters)}, which PEFT's files tell apart by their order, and that of "
                f"{strange[0]!r} is not known",
                "format='safetensors' can hold them",
                option="--format safetensors can hold them",
                outcome=NOT_WRITTEN,
            )
        ordered = sorted(parameters, key=EXPERT_PARAMETERS.index) if len(parameters) > 1 else parameters
        for depth, parameter in enumerate(reversed(ordered)):
            update = updates[f"{module}.{parameter}"]
            E, name = update.experts, module + f".{BASE}" * depth
            A, B = update.A.expand(E, -1, -1), update.B.expand(E, -1, -1)
            if layout == "exchanged":
                A, B = B.transpose(1, 2), A.transpose(1, 2)
            found[f"{name}.{LINEAR['lora_A']}"] = A.reshape(-1, A.shape[2])
            order = (1, 0, 2) if layout == "expert-major" else (1, 2, 0)
            found[f"{name}.{LINEAR['lora_B']}"] = B.permute(order).reshape(B.shape[1], -1)
    return found
