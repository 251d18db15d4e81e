"""Tensors trained in full in addition to the factors: the record of them on the model, and their originals."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import tensors
from ..choices import Bias
from .module_tree import Slot, slot_of

_RECORD = "_lora_extra_tensors"


@dataclass
class ExtraTensors:
    """What is trained in full in the module that carries this record.

    bias: the mode that was asked for. biases: those that are trained, where an injection or an adapter named them; None: those
    that the mode names. modules: the modules asked for. originals: the tensors that copies replace, by name (all tensors of
    `modules`, and the biases). rows: of tensors among them, the rows that an adapter brought; they are saved again, but not
    trained further. swapped: whether the originals are in their places at present, and the copies here. statistics: the
    running means when the update was put on, by name. sizes: the shapes that the weights of the adapted layers had.
    head_watch: see `resized`.
    """

    bias: Bias = "none"
    biases: frozenset[str] | None = None
    modules: tuple[str, ...] = ()
    originals: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    swapped: bool = False
    statistics: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    head_watch: RemovableHandle | None = None


def record(model: nn.Module) -> ExtraTensors:
    """The record of `model` itself, made when it is missing."""
    found: ExtraTensors = vars(model).setdefault(_RECORD, ExtraTensors())
    return found


def record_biases(kept: ExtraTensors, bias: Bias, names: Iterable[str]) -> None:
    """Record that the mode `bias` was asked for and named these biases, in addition to those of earlier injections."""
    if bias == "none":
        return
    if kept.bias == "none" or kept.biases is not None:
        kept.biases = frozenset(names) | (kept.biases or frozenset())
    kept.bias = bias


def record_of(module: nn.Module) -> ExtraTensors | None:
    """The record of `module` itself, if it has one."""
    return vars(module).get(_RECORD)


def forget(modules: Iterable[nn.Module]) -> None:
    """Drop the records of `modules`."""
    for module in modules:
        kept: ExtraTensors | None = vars(module).pop(_RECORD, None)
        if kept is not None and kept.head_watch is not None:
            kept.head_watch.remove()


def replace_with_copies(kept: ExtraTensors, slots: Mapping[str, Slot], replaced: Iterable[Slot]) -> None:
    """Put copies of the tensors in `slots` into their places, and record the originals in `kept`. Tied tensors share one
    copy; a place that has several names is recorded under the first; those in `replaced` have their copy already."""
    done = set(replaced)
    first: dict[Slot, str] = {}
    for name, slot in slots.items():
        if slot not in done:
            first.setdefault(slot, name)
    copies = {id(slot.tensor): _copy(slot.tensor) for slot in first}  # all of them, before any is put in its place
    for slot, name in first.items():
        kept.originals[name] = slot.put(copies[id(slot.tensor)])


def _copy(original: Tensor) -> Tensor:
    copy = original.detach().clone()
    return nn.Parameter(copy, original.requires_grad) if isinstance(original, nn.Parameter) else copy


def swap_problem(kept: ExtraTensors, module: nn.Module) -> str | None:
    """Why the originals of what was trained in `module` cannot be put back, or None."""
    for name, original in kept.originals.items():
        present = slot_of(module, name).tensor
        if "sharded" in (kinds := {tensors.kind(original), tensors.kind(present)}):
            return f"{name!r} was sharded after a copy of it was put in its place; do it before"
        if "partitioned" in kinds and not (original.numel() and present.numel()):
            return f"{name!r} is partitioned by DeepSpeed (ZeRO-3); gather it and its original first"
        if original.is_meta and not present.is_meta:
            return (
                f"the original of {name!r} was on the meta device when it was replaced by a copy to train; load the base's "
                "weights before you inject"
            )
    return None


def swap_originals(module: nn.Module, kept: ExtraTensors) -> None:
    """Exchange the tensors trained in `module` and their originals; called twice, nothing has changed."""
    for name, original in kept.originals.items():
        slot = slot_of(module, name)
        present = slot.tensor
        if (original.dtype, original.device) != (present.dtype, present.device):  # the model was moved meanwhile
            original.data = original.data.to(present.device, present.dtype)
        kept.originals[name] = slot.put(original)
    kept.swapped = not kept.swapped
