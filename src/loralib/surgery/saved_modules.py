"""What is trained in full beside the factors: the record of it on the model, and its originals, which are put back."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..choices import Bias
from ..errors import LayerError
from ..layers import AdaptedLayer
from .module_tree import named_tensor, named_tensors, owner, replace_tensor

_RECORD = "_lora_trained_beside"


@dataclass
class TrainedBeside:
    """What is trained in full in the module that carries this record.

    modules: the modules asked for. originals: the tensors that copies stand in for, by name (all tensors of `modules`, and
    the biases). rows: of tensors among them, the rows that an adapter brought; they are saved again, but not trained further.
    swapped: whether the originals are in their places at present, and the copies here.
    """

    bias: Bias = "none"
    modules: tuple[str, ...] = ()
    originals: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    swapped: bool = False


def record(model: nn.Module) -> TrainedBeside:
    """The record of `model` itself, made when it is missing."""
    found: TrainedBeside = vars(model).setdefault(_RECORD, TrainedBeside())
    return found


def records(model: nn.Module) -> Iterator[tuple[str, nn.Module, TrainedBeside]]:
    """All records in `model`, with the name and the module that each belongs to."""
    for name, module in model.named_modules():
        if _RECORD in vars(module):
            yield name, module, vars(module)[_RECORD]


def forget(model: nn.Module) -> None:
    """Drop all records in `model`."""
    for _, module, _ in list(records(model)):
        del vars(module)[_RECORD]


def check_enabled(model: nn.Module, verb: str) -> None:
    """`LayerError` inside a `disabled` block, where originals stand in the places of what was trained."""
    if any(_is_off(module) for module in model.modules()):
        raise LayerError(
            f"{type(model).__name__} cannot be {verb} inside a `disabled` block; do it outside. Nothing was changed."
        )


def _is_off(module: nn.Module) -> bool:
    kept: TrainedBeside | None = vars(module).get(_RECORD)
    return (isinstance(module, AdaptedLayer) and module.disabled) or (kept is not None and kept.swapped)


def set_aside(model: nn.Module, names: Iterable[str]) -> None:
    """Let copies of the tensors `names` take their places, and record the originals. Tied tensors get one copy; a tensor of
    a module that has several names is recorded under one of them."""
    if not (chosen := list(names)):
        return
    kept, tensors = record(model), named_tensors(model)
    copies: dict[int, Tensor] = {}
    slots = {owner(module, name) for _, module, other in records(model) for name in other.originals}
    for name in chosen:
        if (slot := owner(model, name)) not in slots:
            slots.add(slot)
            original = tensors[name]
            if id(original) not in copies:
                copy = original.detach().clone()
                is_parameter = isinstance(original, nn.Parameter)
                copies[id(original)] = nn.Parameter(copy, original.requires_grad) if is_parameter else copy
            kept.originals[name] = replace_tensor(model, name, copies[id(original)])


def swap_originals(module: nn.Module, kept: TrainedBeside) -> None:
    """Exchange the tensors trained in `module` and their originals; called twice, nothing has changed."""
    for name, original in kept.originals.items():
        present = named_tensor(*owner(module, name))
        if (original.dtype, original.device) != (present.dtype, present.device):  # the model was moved meanwhile
            original.data = original.data.to(present.device, present.dtype)
        kept.originals[name] = replace_tensor(module, name, original)
    kept.swapped = not kept.swapped
