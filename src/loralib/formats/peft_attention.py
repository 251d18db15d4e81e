"""`nn.MultiheadAttention` in PEFT's layout.

PEFT gives the packed projection of query, key and value one update, A (r, e) and B (3·e, r), under the name of the attention
N, and `out_proj` another one of the same rank and alpha under N.base_layer.out_proj. Here each of the four has its own. The
same ΔW in PEFT's form has the ranks of query, key and value added up, and zeros wherever a part does not see a factor; on
reading, components that are zero in a part are left out of it, so that what was written comes back.

PEFT (0.21 and before) adds the update of `out_proj` twice: its `merge`, which its forward pass uses as well, puts W + ΔW in
the place of W and then lets the inner layer merge. Its adapters were trained so and mean that; hence the factor 2 here.
"""

import math
from collections.abc import Mapping

import torch

from ..adapters.updates import LoRAUpdate, ProjectionUpdate
from ..architectures import PROJECTIONS
from ..errors import FormatError

_INNER_OUT = ".base_layer.out_proj"
_TIMES_ADDED = 2


def plain(name: str) -> str:
    """The model's own name of a layer that PEFT calls `name`."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def configured(name: str) -> str:
    """The name by which PEFT's configuration knows the layer that it calls `name`."""
    return name.removesuffix(_INNER_OUT)


def joined(updates: Mapping[str, LoRAUpdate]) -> dict[str, LoRAUpdate]:
    """`updates` with those of each attention in PEFT's form. Raises `FormatError` for one with a `kdim` or `vdim`."""
    found = {name: update for name, update in updates.items() if not isinstance(update, ProjectionUpdate)}
    attentions: dict[str, dict[str, ProjectionUpdate]] = {}
    for name, update in updates.items():
        if isinstance(update, ProjectionUpdate):
            owner, _, part = name.rpartition(".")
            attentions.setdefault(owner, {})[part] = update
    for owner, parts in attentions.items():
        found[owner], found[owner + _INNER_OUT] = _pack(owner, parts)
    return found


def _pack(owner: str, parts: dict[str, ProjectionUpdate]) -> tuple[LoRAUpdate, LoRAUpdate]:
    first = next(iter(parts.values()))
    e, packed = len(first.B), [parts[name] for name in PROJECTIONS if name in parts]
    if any((update.A.shape[1], len(update.B)) != (e, e) for update in parts.values()):
        raise FormatError(f"{owner!r} has keys or values of another width, which PEFT cannot adapt. Nothing was written.")
    R = max(sum(update.r for update in packed), parts["out_proj"].r if "out_proj" in parts else 0)
    scalings = {update.scaling for update in parts.values()}
    s = scalings.pop() if len(scalings) == 1 else 1.0
    A, B, A_out, B_out = (first.A.new_zeros(shape) for shape in ((R, e), (3 * e, R), (R, e), (e, R)))
    at = 0
    for update in packed:
        row = PROJECTIONS.index(next(name for name in PROJECTIONS if parts.get(name) is update)) * e
        A[at : at + update.r] = update.A
        B[row : row + e, at : at + update.r] = update.B * (update.scaling / s)
        at += update.r
    if out := parts.get("out_proj"):
        A_out[: out.r], B_out[:, : out.r] = out.A, out.B * (out.scaling / s / _TIMES_ADDED)
    lora_alpha = s * (math.sqrt(R) if first.use_rslora else R)
    return LoRAUpdate(A, B, lora_alpha, first.use_rslora), LoRAUpdate(A_out, B_out, lora_alpha, first.use_rslora)


def apart(updates: Mapping[str, LoRAUpdate]) -> dict[str, LoRAUpdate]:
    """`updates`, by PEFT's names, with those of each attention taken apart into its projections'. `FormatError` when one layer
    has several."""
    found: dict[str, LoRAUpdate] = {}
    owners = {configured(name) for name in updates if name.endswith(_INNER_OUT)} & updates.keys()
    for name, update in updates.items():
        if configured(name) not in owners:
            if plain(name) in found:
                raise FormatError(
                    f"{plain(name)!r} has several updates, as experts have, and no target_parameters in a configuration says "
                    "which Parameters they are for."
                )
            found[plain(name)] = update
    for owner in owners:
        packed, out = updates[owner], updates[owner + _INNER_OUT]
        blocks = dict(zip(PROJECTIONS, packed.B.chunk(3), strict=False)) | {"out_proj": out.B * _TIMES_ADDED}
        untrained = not any(B.any() for B in blocks.values())
        for part, B in blocks.items():
            if B.any() or untrained:
                found[f"{owner}.{part}"] = _without_zeros(out if part == "out_proj" else packed, B)
    return found


def _without_zeros(update: LoRAUpdate, B: torch.Tensor) -> ProjectionUpdate:
    kept = B.any(dim=0) if B.any() else torch.ones(B.shape[1], dtype=torch.bool)
    r = int(kept.sum())
    lora_alpha = update.scaling * (math.sqrt(r) if update.use_rslora else r)
    return ProjectionUpdate(update.A[kept], B[:, kept], lora_alpha, update.use_rslora)
