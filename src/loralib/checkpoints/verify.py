"""Checking what `merge_checkpoint` wrote: some rows of some tensors computed anew in float64, and compared.

The updates compute their effective weights themselves for it, not the blocks of `merge`. A number may be off by the rounding of
the result, half a unit in its last place, and of the float32 arithmetic before it.
"""

import os
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.updates import EmbeddingUpdate, LoRAUpdate
from ..storage.safetensors import DTYPES
from .checkpoint import open_checkpoint
from .merge_blocks import Change, changed_whole
from .merge_plan import Target, Tied, planned

_TENSORS, _ROWS = 24, 64


@dataclass(frozen=True)
class Checked:
    """How many numbers of how many tensors were compared, and by how much the worst, in `where`, is off, as a share of what
    rounding allows."""

    numbers: int
    tensors: int
    worst: float
    where: str


def check_merged(
    base: str | os.PathLike[str], adapter: Adapter, output: str | os.PathLike[str], *, tied: Tied = "refuse", seed: int = 0
) -> Checked:
    """Compare a sample of the tensors of `output` with what `base` and `adapter` make of them.

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
        rows = _sample(target, rng)
        found = written.tensor(target.name)[rows[0] : rows[1]].double()
        off = _share_of_rounding(target, W[rows[0] : rows[1]], found, rows[0])
        numbers += found.numel()
        worst, where = (off, target.name) if off > worst else (worst, where)
    return Checked(numbers, len(chosen), worst, where)


def _sample(target: Target, rng: random.Random) -> tuple[int, int]:
    """A range of rows; all of them where an update needs the whole weight."""
    count = target.shape[0]
    if count <= _ROWS or any(change.needs_whole for change in target.changes):
        return 0, count
    start = rng.randrange(count - _ROWS + 1)
    return start, start + _ROWS


def _changed_rows(W: Tensor, start: int, change: Change) -> Tensor:
    """The effective weight's rows that begin with row `start`, by an update that has the factors of these rows alone."""
    update, site = change.update.plain(), change.site
    by_inputs = site.transposed or isinstance(update, EmbeddingUpdate)
    count = update.A.shape[1] if by_inputs else len(update.B)
    first, last = max(start, site.start), min(start + len(W), site.start + count)
    if first >= last:
        return W
    rows = slice(first - site.start, last - site.start)
    A, B = (update.A[:, rows], update.B) if by_inputs else (update.A, update.B[rows])
    kind = EmbeddingUpdate if isinstance(update, EmbeddingUpdate) else LoRAUpdate
    own = kind(A.double(), B.double(), update.lora_alpha, update.use_rslora)
    W = W.clone()
    part = W[first - start : last - start]
    W[first - start : last - start] = own.effective_weight(part.t()).t() if site.transposed else own.effective_weight(part)
    return W


def _share_of_rounding(target: Target, W: Tensor, found: Tensor, start: int) -> float:
    """How far rows are off, over what rounding allows; rows of tokens, which replace theirs, are left out."""
    exact = W.double()
    for change in target.changes:
        exact = changed_whole(exact, change) if change.needs_whole else _changed_rows(exact, start, change)
    eps = torch.finfo(DTYPES[target.dtype]).eps
    size = torch.maximum(exact.abs(), found.abs())
    noise = 64 * torch.finfo(torch.float32).eps * max(1e-30, float(torch.maximum(exact.abs().max(), W.double().abs().max())))
    off = (found - exact).abs() / (0.5 * eps * size + noise)
    if target.rows is not None:
        replaced = [index - start for index in target.rows.indices if start <= index < start + len(off)]
        off[replaced] = 0
    return float(off.max()) if not off.isnan().any() else float("inf")
