"""What is trained is what is saved is what is loaded: the one predicate behind all three.

A tensor of a model belongs to its adaptation when
  - a dotted part of its name starts with `lora_` (the factors, those of layers of one's own included), or
  - it is a bias that the mode `bias` names, or
  - `inject` or `attach` recorded it as trained in full beside the factors (a new head, say).

The record sits on the module that was injected, with the originals of the tensors it names, so that `eject` and `disabled`
can put them back.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .config import Bias, check_bias
from .errors import ConfigError, LayerError
from .layers import AdaptedLayer, LoRALayer, MultiheadAttentionLoRA
from .patterns import within

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


def join(*parts: str) -> str:
    """A dotted name; empty parts (the root module's name) vanish.

    >>> join("", "encoder", "weight")
    'encoder.weight'
    """
    return ".".join(part for part in parts if part)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel` and `torch.compile`'s wrapper, whose names have no prefix."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


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


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and persistent buffers by name, tied ones under each of their names."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for prefix, module in model.named_modules(remove_duplicate=False):
        transient = module._non_persistent_buffers_set
        tensors |= {join(prefix, k): b for k, b in module._buffers.items() if b is not None and k not in transient}
    return tensors


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the tensor `name`, and the tensor's name in it."""
    prefix, _, leaf = name.rpartition(".")
    return model.get_submodule(prefix), leaf


def replace_tensor(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Put `tensor` in the place of the parameter or buffer `name`; the one that was there is returned."""
    module, leaf = owner(model, name)
    slots = _slots(module, leaf)
    before: Tensor = slots[leaf]
    slots[leaf] = tensor
    return before


def _slots(module: nn.Module, leaf: str) -> dict[str, Any]:
    """Where `module` keeps its own tensor `leaf`: among its parameters or among its buffers."""
    return module._parameters if leaf in module._parameters else module._buffers


def tie_problem(model: nn.Module, names: Iterable[str]) -> str | None:
    """Why `names` cannot be trained apart from the rest of the model, or None: one of them is tied to a tensor outside."""
    if not (chosen := set(names)):
        return None
    tensors = named_tensors(model)
    inside = {id(tensors[name]): name for name in chosen}
    slots = {owner(model, name) for name in chosen}
    for name, tensor in tensors.items():
        if name not in chosen and id(tensor) in inside and owner(model, name) not in slots:
            return f"{inside[id(tensor)]} is tied to {name}; name the modules of both in modules_to_save, or untie them"
    return None


def tied_names(model: nn.Module, name: str) -> list[str]:
    """All names of the tensor `name`, `name` first."""
    tensors = named_tensors(model)
    return [name, *(other for other, tensor in tensors.items() if tensor is tensors[name] and other != name)]


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


def named_tensor(module: nn.Module, leaf: str) -> Tensor:
    """The parameter or buffer `leaf` of `module` itself."""
    found: Tensor = _slots(module, leaf)[leaf]
    return found


def bias_names(model: nn.Module, bias: Bias, about_to_be_adapted: Iterable[str] = ()) -> set[str]:
    """The parameters that the mode names: those called `bias` of the layers that carry an update, of all, or of none."""
    if bias == "none":
        return set()
    named = {name for name, _ in model.named_parameters(remove_duplicate=False) if is_bias(name)}
    if bias == "all":
        return named
    adapted = [name for name, m in model.named_modules(remove_duplicate=False) if _carries_update(m)]
    return named & {join(name, "bias") for name in (*adapted, *about_to_be_adapted)}


def _carries_update(module: nn.Module) -> bool:
    return module.has_update if isinstance(module, AdaptedLayer) else isinstance(module, LoRALayer) and bool(module.r)


def is_bias(name: str) -> bool:
    """Whether a tensor of this name is one of those that the mode `bias` chooses among: it is *named* bias.

    >>> is_bias("query.bias"), is_bias("bias_table.weight")
    (True, False)
    """
    return name.rpartition(".")[2] == "bias"


def is_factor(name: str) -> bool:
    """Whether a tensor of this name is a LoRA factor: a dotted part of it starts with `lora_`.

    >>> is_factor("encoder.query.lora_A"), is_factor("explora_net.weight")
    (True, False)
    """
    return any(part.startswith("lora_") for part in name.split("."))


def trained_names(model: nn.Module, bias: Bias | None = None) -> set[str]:
    """The names of all tensors that belong to the adaptation of `model`. `bias` None means as recorded, else "none"."""
    names = {name for name in named_tensors(model) if is_factor(name)}
    if bias is not None:
        names |= bias_names(model, check_bias(bias))
    for prefix, module, kept in records(model):
        whole = [name for name in kept.originals if name not in kept.rows]
        names |= {join(prefix, name) for name in whole if not is_bias(name) or within(name, kept.modules)}
        if bias is None:
            names |= {join(prefix, name) for name in bias_names(module, kept.bias)}
    return names


def _check_called(model: nn.Module) -> None:
    """`LayerError` when a layer with an update was put by hand where torch reads its weight without calling it."""
    for name, module in model.named_modules():
        by_hand = isinstance(module, nn.MultiheadAttention) and not isinstance(module, MultiheadAttentionLoRA)
        if by_hand and any(_carries_update(child) for child in module.children()):
            where = join(name, "out_proj")
            raise LayerError(
                f"{where!r} is a LoRA layer whose weight nn.MultiheadAttention reads without calling it, so its update would "
                "have no effect: leave the plain layer there and inject a LoRAConfig that targets it. Nothing was changed."
            )


def mark_only_lora_as_trainable(model: nn.Module, bias: Bias | None = None) -> None:
    """Set `requires_grad` of every parameter: True for the factors, for the biases that `bias` names and for what the
    configuration's `modules_to_save` named; False for all else.

    bias: "none", "lora_only" (those of layers with an update) or "all" (every parameter *named* bias); None means what the
    model was injected with, else "none". A bias named here is also what `extract` and `lora_state_dict` save; one that the
    model was not injected with is trained in place, so `eject` leaves it as trained.
    Raises `ConfigError` when nothing would be trained, and `LayerError` inside a `disabled` block or when a layer would be
    trained that is never called, with no flag changed.

    >>> import loralib as lora
    >>> model = nn.Sequential(lora.Linear(4, 4, r=2), nn.Linear(4, 2))
    >>> lora.mark_only_lora_as_trainable(model)
    >>> [name for name, p in model.named_parameters() if p.requires_grad]
    ['0.lora_A', '0.lora_B']
    """
    check_enabled(model, "marked")
    _check_called(model)
    names = trained_names(model, bias)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not names & parameters.keys():
        raise ConfigError(
            f"{type(model).__name__} has no LoRA parameter, so nothing would be trained: "
            "inject a LoRAConfig, or build layers with r > 0, first. Nothing was changed."
        )
    trained = {id(parameters[name]) for name in names & parameters.keys()}
    for parameter in parameters.values():
        parameter.requires_grad_(id(parameter) in trained)
    if bias is not None:
        for _, _, kept in records(model):
            kept.bias = "none"
        record(unwrap(model)).bias = bias


def lora_state_dict(model: nn.Module, bias: Bias | None = None) -> dict[str, Tensor]:
    """The part of `model.state_dict()` that belongs to the adaptation: the factors, the biases that `bias` names (as in
    `mark_only_lora_as_trainable`), and what `modules_to_save` named. The tensors share memory with the model's.
    Raises `LayerError` inside a `disabled` block.

    >>> import loralib as lora
    >>> model = nn.Sequential(lora.Linear(4, 4, r=2), nn.Linear(4, 2))
    >>> list(lora.lora_state_dict(model, bias="lora_only"))
    ['0.bias', '0.lora_A', '0.lora_B']
    """
    check_enabled(model, "saved")
    names = trained_names(model, bias)
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}
