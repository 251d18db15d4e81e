"""The tensors of a model by name: tied ones under each of their names, and the modules that hold them."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


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


def named_tensor(module: nn.Module, leaf: str) -> Tensor:
    """The parameter or buffer `leaf` of `module` itself."""
    found: Tensor = _slots(module, leaf)[leaf]
    return found


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
