"""Checking what `merge_checkpoint` wrote: rows of some tensors are computed again in float64, and compared.

    W' = W + s·B·A, then m·W' / ‖W'‖ for DoRA

is written out here on whole factors: neither the blocks of the merge nor `LoRAUpdate.effective_weight` is trusted. A number may
be off by the rounding of the result, half a unit in its last place, and of the float32 arithmetic before it.
"""

import os
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.convolution_updates import LegacyTransposedUpdate
from ..adapters.experts_update import ExpertsUpdate
from ..choices import TiedWeights
from ..storage.safetensors import DTYPES
from .checkpoint import open_checkpoint
from .merge_blocks import Change
from .merge_plan import Target, planned

_TENSORS, _ROWS = 24, 64


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        numbers: How many numbers were compared.
        tensors: Of how many tensors.
        worst: By how much the worst number is off, as a fraction of what rounding allows.
        where: The tensor that it is in.
    """

    numbers: int
    tensors: int
    worst: float
    where: str


def check_merged(
    base: str | os.PathLike[str],
    adapter: Adapter,
    output: str | os.PathLike[str],
    *,
    tied: TiedWeights = "refuse",
    seed: int = 0,
) -> Checked:
    """Compare a sample of the merged tensors in `output` with what `base` and `adapter` make of them.

    Args:
        base: The files that were merged into.
        adapter: The adapter that was merged.
        output: The folder that `merge_checkpoint` wrote.
        tied: As it was for `merge_checkpoint`.
        seed: Of the sample.

    Returns:
        How much was compared, and the worst error.

    Example:
        >>> import tempfile, loralib as lora
        >>> from safetensors.torch import save_file
        >>> adapter = lora.Adapter(lora.LoRAConfig(r=1), {"proj": lora.LoRAUpdate(torch.ones(1, 2), torch.ones(2, 1), 1)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"proj.weight": torch.eye(2)}, folder + "/model.safetensors")
        ...     _ = lora.merge_checkpoint(folder + "/model.safetensors", adapter, folder + "/merged")
        ...     check_merged(folder + "/model.safetensors", adapter, folder + "/merged").numbers
        4
    """
    plan, written = planned(open_checkpoint(base), adapter, tied), open_checkpoint(output)
    targets = [target for target in plan.targets() if target.changes and target.value is None and target.nbytes]
    rng = random.Random(seed)
    chosen = targets if len(targets) <= _TENSORS else rng.sample(targets, _TENSORS)
    numbers, worst, where = 0, 0.0, ""
    for target in chosen:
        W = plan.checkpoint.tensor(target.source)
        start, stop = _sample(target, rng)
        found = written.tensor(target.name)[start:stop].double()
        off = _fraction_of_rounding(target, W[start:stop], found, start)
        numbers += found.numel()
        worst, where = (off, target.name) if off > worst else (worst, where)
    return Checked(numbers, len(chosen), worst, where)


def _sample(target: Target, rng: random.Random) -> tuple[int, int]:
    """A range of rows; all of them where the rows of W' do not come from the same rows of W alone."""
    count = target.shape[0]
    if count <= _ROWS or any(c.update.magnitude is not None or c.layout.deconvolution for c in target.changes):
        return 0, count
    start = rng.randrange(count - _ROWS + 1)
    return start, start + _ROWS


def _exact(change: Change, W: Tensor, start: int) -> Tensor:
    """W' in float64 for rows `W` of the layer's own, which begin with row `start`."""
    update = change.update.with_tensors({name: tensor.double() for name, tensor in change.update.tensors().items()})
    if isinstance(update, LegacyTransposedUpdate):  # whose product has the weight's own shape
        return W.double() + update.delta()[start : start + len(W)]
    if isinstance(update, ExpertsUpdate):
        return W.double() + update.delta(replace(change.layout, start=0, rows=None))[start : start + len(W)]
    update = update.plain()
    layout, rows = replace(change.layout, start=0, rows=None), slice(start, start + len(W))
    A, B = update.A.flatten(1), update.B.flatten(1)
    if layout.transposed:
        A = A[:, rows]
    elif not layout.deconvolution:
        B = B[rows]
    W = layout.to_canonical(change.update.as_used(W).double())
    changed = W + update.scaling * (B @ A).reshape(W.shape)
    if update.magnitude is not None:
        norm = changed.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        changed = changed * (update.magnitude / norm).view(-1, *[1] * (changed.dim() - 1))
    return layout.from_canonical(changed)


def _fraction_of_rounding(target: Target, W: Tensor, found: Tensor, start: int) -> float:
    """How far rows are off, over what rounding allows; replaced rows of token embeddings are left out."""
    exact = W.double()
    for change in target.changes:
        own, end = change.rows(target.shape[0])
        first, last = max(start, own), min(start + len(W), end)
        if first < last:
            exact[first - start : last - start] = _exact(change, W[first - start : last - start], first - own)
    eps = torch.finfo(DTYPES[target.dtype]).eps
    size = torch.maximum(exact.abs(), found.abs())
    noise = 64 * torch.finfo(torch.float32).eps * max(1e-30, float(torch.maximum(exact.abs().max(), W.double().abs().max())))
    off = (found - exact).abs() / (0.5 * eps * size + noise)
    if target.rows is not None:
        replaced = [index - start for index in target.rows.indices if start <= index < start + len(off)]
        off[replaced] = 0
    return float(off.max()) if not off.isnan().any() else float("inf")
