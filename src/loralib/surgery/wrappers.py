"""Modules that only wrap another one, and names without them.

An adapter's names are those of the plain model, whatever is wrapped around it or around its parts: DDP, FSDP, data
parallelism, averaging, activation checkpointing, `torch.compile`. Some of these wrappers leave a part in the names of the state
dict and some do not, so a key is followed through the modules and not taken apart as text.
"""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ..layers import OwnedWeight

_FSDP1 = "_fsdp_wrapped_module"
_CHILDREN = ("_orig_mod", "_checkpoint_wrapped_module", _FSDP1)  # torch.compile, checkpoint_wrapper and offload_wrapper, FSDP
_CLASSES = (DistributedDataParallel, DataParallel, AveragedModel)
_BY_NAME = {"deepspeed.runtime.engine.DeepSpeedEngine", "timm.utils.model_ema.ModelEmaV2", "timm.utils.model_ema.ModelEmaV3"}


def wrapped_child(module: nn.Module) -> str | None:
    """The name under which `module`, a wrapper, holds the module that it wraps; None for any other module."""
    children = module._modules
    for key in _CHILDREN:
        if key in children:
            return key
    if "module" not in children:
        return None
    known = isinstance(module, _CLASSES) or any(f"{c.__module__}.{c.__qualname__}" in _BY_NAME for c in type(module).__mro__)
    return "module" if known else None


def is_flattened(wrapper: nn.Module) -> bool:
    """Whether `wrapper` is FSDP1's, which holds the parameters of what it wraps in a flat one of its own."""
    return _FSDP1 in wrapper._modules


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside all wrappers around it."""
    while (key := wrapped_child(module)) is not None:
        module = module.get_submodule(key)
    return module


def name_of(key: str, module: nn.Module | None) -> str:
    """What the child `module`, which is held under `key`, is called: the update of a Parameter goes by the Parameter's name.

    >>> name_of("0", nn.Linear(2, 2))
    '0'
    """
    return module.name if isinstance(module, OwnedWeight) else key


def child_of(module: nn.Module, name: str) -> nn.Module:
    """The child of `module` that is called `name`."""
    child = module._modules.get(name)
    return module.get_submodule(f"lora_{name}") if child is None else child


def plain_name(model: nn.Module, key: str) -> str:
    """What the tensor `key` of the state dict of `model` is called in the plain model.

    >>> model = nn.DataParallel(nn.Sequential(nn.Linear(2, 2), AveragedModel(nn.Linear(2, 2))))
    >>> [plain_name(model, key) for key in model.state_dict()]
    ['0.weight', '0.bias', '1.n_averaged', '1.weight', '1.bias']
    """
    parts, found = key.split("."), []
    module: nn.Module | None = model
    while parts:
        while module is not None and (child := wrapped_child(module)) is not None:
            if parts[0] == child:
                del parts[0]
            module = module._modules[child]
        key = parts.pop(0)
        module = module._modules.get(key) if module is not None else None
        found.append(name_of(key, module))
    return ".".join(found)
