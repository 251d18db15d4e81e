"""Models that several processes share: what each of them would do to its own part alone is refused.

`DistributedDataParallel` keeps in step the parameters that it found when it was made. `FullyShardedDataParallel` (FSDP1) and
`fully_shard` (FSDP2) hold the parameters themselves, and put them back into the modules for every forward pass. What is put
into such a module afterwards is trained apart in each process, or overwritten.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import LayerError
from ..patterns import within
from .survey import Survey
from .wrappers import is_flattened

# by name: torch.distributed.fsdp takes long to import
_FSDP2, _REPLICATE = "FSDPModule", "DDP"


def check_synchronized(read: Survey, names: Iterable[str], verb: str) -> None:
    """`LayerError` when parameters would be added to one of the modules `names` inside `DistributedDataParallel`."""
    roots = [name for name, wrapper in read.wrappers if isinstance(wrapper, DistributedDataParallel)]
    roots += _of_class(read, _REPLICATE)
    if found := [name for name in names if _inside(name, roots)]:
        raise LayerError(
            f"{found[0]!r} cannot be {verb}: DistributedDataParallel would not keep its new parameters the same in all "
            f"processes; {_BEFORE[verb]} before you wrap the model. Nothing was changed."
        )


def check_not_flattened(read: Survey, verb: str) -> None:
    """`LayerError` for a model with parts in FSDP1, whose parameters are no longer the modules' own."""
    if any(is_flattened(wrapper) for _, wrapper in read.wrappers):
        raise LayerError(
            f"{type(read.model).__name__} cannot be {verb}: FullyShardedDataParallel holds its parameters, and puts them back; "
            f"{_BEFORE[verb]} before you wrap it. Nothing was changed."
        )


def check_not_sharded(read: Survey, names: Iterable[str], verb: str) -> None:
    """`LayerError` when `fully_shard` holds the parameters of one of the modules `names`, gathered at present or not."""
    roots = _of_class(read, _FSDP2)
    if roots and (found := [name for name in names if _inside(name, roots)]):
        raise LayerError(
            f"{found[0]!r} cannot be {verb}: fully_shard holds its parameters, and puts them back; {_BEFORE[verb]} before "
            "fully_shard. Nothing was changed."
        )


def check_gathered(read: Survey) -> None:
    """`LayerError` when a part of the model in FSDP1 has only this process's share of its parameters."""
    for name, wrapper in read.wrappers:
        if is_flattened(wrapper) and _is_share(wrapper):
            raise LayerError(
                f"{name or type(read.model).__name__!r} holds this process's share of its parameters only; extract in all "
                "processes inside `with FullyShardedDataParallel.summon_full_params(model)`. Nothing was extracted."
            )


def _is_share(wrapper: nn.Module) -> bool:
    handle: Any = wrapper._handle
    return handle is not None and handle.uses_sharded_strategy and bool(handle.is_sharded(handle.flat_param))


def _of_class(read: Survey, name: str) -> list[str]:
    """The modules of torch's class of that name, or one derived from it."""
    classes = {type(module) for module in read.modules.values()}
    chosen = {cls for cls in classes if any(_is_torchs(c, name) for c in cls.__mro__)}
    return [found for found, module in read.modules.items() if type(module) in chosen] if chosen else []


def _is_torchs(cls: type, name: str) -> bool:
    return cls.__name__ == name and cls.__module__.startswith("torch.distributed.")


def _inside(name: str, roots: Iterable[str]) -> bool:
    return any(not root or within(name, [root]) for root in roots)


_BEFORE = {
    "adapted": "inject",
    "attached to": "attach",
    "merged": "merge",
    "ejected": "eject",
    "disabled": "inject without modules_to_save, or disable",
}
