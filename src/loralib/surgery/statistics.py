"""Running statistics (batch norm's mean and variance): they move while a model in training mode computes, and since they are
not parameters they belong to no adapter, unless `modules_to_save` names their module."""

from collections.abc import Iterable

from torch import Tensor

from .module_tree import join
from .saved_modules import ExtraTensors
from .survey import Survey

_MEAN = "running_mean"


def note_statistics(read: Survey, kept: ExtraTensors) -> None:
    """Remember in the record `kept` of the model what its running means are, unless an earlier injection did."""
    for name, module in read.modules.items():
        mean = module._buffers.get(_MEAN)
        if mean is not None and not mean.is_meta:
            kept.statistics.setdefault(join(name, _MEAN), mean.detach().clone())


def moved_statistics(read: Survey, saved: Iterable[str]) -> list[str]:
    """The modules whose running means have moved since the injection, but for those whose tensors are `saved`."""
    notes = {join(prefix, name): mean for prefix, _, kept in read.records for name, mean in kept.statistics.items()}
    names = [name for name, before in notes.items() if name in read.slots and _has_moved(read.slots[name].tensor, before)]
    return sorted(name.removesuffix(f".{_MEAN}") for name in set(names).difference(saved))


def _has_moved(now: Tensor, before: Tensor) -> bool:
    return not now.is_meta and now.shape == before.shape and not now.equal(before.to(now))
