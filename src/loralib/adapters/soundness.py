"""What keeps an update from making a weight W' = W + ΔW that is of any use: asked before anything is merged or written.

Factors must be finite, always, and so must s·B·A be in the arithmetic of merging, float32 at least, by a bound on its numbers.
W' itself is looked at in float16 only, whose largest number is 65,504.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .. import ops
from .layout import Layout
from .token_rows import TokenRows
from .updates import LoRAUpdate

_BEYOND = "numbers in it would be beyond 65504, where float16 ends; convert the model to bfloat16 or float32 first"


def not_finite(update: LoRAUpdate) -> str | None:
    """Which tensor of `update` holds NaN or infinity, or None.

    >>> not_finite(LoRAUpdate(torch.ones(1, 2), torch.tensor([[1.0], [torch.nan]]), lora_alpha=1))
    'its lora_B holds 1 number that is not finite, of 2'
    """
    with ops.one_thread():  # else torch's other threads wait for more in a busy loop, in the way of the merge that follows
        found = (not_finite_tensor(f"its {name}", tensor) for name, tensor in update.tensors().items())
        return next(filter(None, found), None)


def not_finite_tensor(name: str, tensor: Tensor) -> str | None:
    """How many numbers of `tensor`, which a message calls `name`, are NaN or infinite; None when there are none."""
    if tensor.is_meta or (finite := tensor.isfinite()).all():
        return None
    count = tensor.numel() - int(finite.sum())
    numbers = "1 number that is" if count == 1 else f"{count} numbers that are"
    return f"{name} holds {numbers} not finite, of {tensor.numel()}"


def out_of_range(update: LoRAUpdate) -> str | None:
    """Why s·B·A of finite factors would hold numbers that float32 (or a wider dtype of the factors) cannot, or None.

    >>> out_of_range(LoRAUpdate(torch.ones(1, 2), torch.ones(2, 1), lora_alpha=1e308))
    'lora_alpha=1e+308 times its lora_B and lora_A, up to 1 and 1, gives numbers that float32 cannot hold'
    """
    A, B = update.A.detach(), update.B.detach()
    if A.is_meta or not (A.numel() and B.numel()):
        return None
    wide = torch.promote_types(torch.promote_types(A.dtype, B.dtype), torch.float32)
    with ops.one_thread():
        a, b, info = float(A.abs().max()), float(B.abs().max()), torch.finfo(wide)
    scaling = abs(update.scaling)
    if max(scaling, scaling * a * b * len(A)) <= info.max and (scaling >= info.tiny or not scaling):
        return None
    return (
        f"lora_alpha={update.lora_alpha:g} times its lora_B and lora_A, up to {b:.3g} and {a:.3g}, gives numbers that "
        f"{str(wide).removeprefix('torch.')} cannot hold"
    )


def empty(update: LoRAUpdate) -> str | None:
    """Which tensor of `update` holds no numbers, or None.

    >>> empty(LoRAUpdate(torch.ones(1, 0), torch.ones(2, 1), lora_alpha=1))
    'its lora_A holds no numbers, by its shape (1, 0)'
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in update.tensors().items() if not tensor.numel()}
    return next((f"its {name} holds no numbers, by its shape {shape}" for name, shape in shapes.items()), None)


def problems(
    layers: Mapping[str, LoRAUpdate], tensors: Mapping[str, Tensor], rows: Mapping[str, TokenRows]
) -> Iterator[tuple[str, str]]:
    """What keeps parts of an adapter from being usable: the names of layers and tensors, and why."""
    for name, update in layers.items():
        if problem := not_finite(update) or empty(update) or out_of_range(update):
            yield name, problem
    in_full = {name: not_finite_tensor("it", tensor) for name, tensor in tensors.items()}
    in_part = {name: not_finite_tensor("a row of it", held.values) for name, held in rows.items()}
    yield from ((name, problem) for name, problem in [*in_full.items(), *in_part.items()] if problem)


def overflowed(before: Tensor, after: Tensor) -> str | None:
    """What happened to numbers of `before` that are too large for the dtype of `after`, float16; None where nothing did."""
    if after.dtype != torch.float16 or after.isfinite().all() or not before.isfinite().all():
        return None
    return _BEYOND


def devices_problem(update: LoRAUpdate, W: Tensor) -> str | None:
    """Why `update` and the weight `W`, which are on different devices, cannot be merged; None where they are on one."""
    held = {"the weight": W, **update.tensors()}
    if len({tensor.device for tensor in held.values()}) == 1:
        return None
    places = sorted(held.items(), key=lambda item: not item[1].is_meta)
    sentence = "its tensors are on different devices: " + ", ".join(f"{name} on {tensor.device}" for name, tensor in places)
    return f"{sentence}; {ops.ON_META}" if places[0][1].is_meta else sentence


def merge_problem(update: LoRAUpdate, W: Tensor, layout: Layout) -> str | None:
    """Why `update` cannot be merged into the stored weight `W`, or None."""
    if problem := devices_problem(update, W):
        return problem
    fitting = layout.stored_shape(update.canonical_shape)
    if fitting != tuple(W.shape):
        return f"its weight has shape {tuple(W.shape)}, and its update is for {fitting}"
    return not_finite(update) or out_of_range(update) or _overflow(update, W, layout)


def _overflow(update: LoRAUpdate, W: Tensor, layout: Layout) -> str | None:
    """Why a finite float16 weight would not be finite afterwards, or None: W' is computed where a bound of it is too large."""
    W, update = W.detach(), update.with_tensors({name: tensor.detach() for name, tensor in update.tensors().items()})
    if W.dtype != torch.float16 or W.is_meta or not W.numel():
        return None
    rows, columns = (torch.linalg.vector_norm(t.float().flatten(1), dim=d).max() for t, d in ((update.B, 1), (update.A, 0)))
    largest = float(W.abs().max()) + abs(update.scaling) * float(rows * columns)
    if largest < torch.finfo(torch.float16).max:
        return None
    return overflowed(W, update.effective_weight(W, layout))
