"""An adapter's experts in the form that a model has them in memory: together, or each with layers of its own."""

from collections.abc import Iterable
from typing import Any

from .. import layers
from ..adapters.adapter import Adapter
from ..adapters.expert_forms import BOTH, Stack, module_of, split_experts, stacked
from ..adapters.experts_update import ExpertsUpdate
from .survey import Survey

_OLD, _NEW = ".block_sparse_moe.experts", ".mlp.experts"  # in transformers 4, and since


def as_in_model(read: Survey, adapter: Adapter) -> Adapter:
    """`adapter` with its experts together where the model keeps them so, and apart where each has layers of its own. ΔW is the
    same. Names that the model has are left alone."""
    strange = [name for name in adapter.layers if name not in read.sites]
    if not strange:
        return adapter
    if renamed := _moved(read, strange):
        adapter = adapter.rename(
            lambda name: next((new + name[len(old) :] for old, new in renamed.items() if name.startswith(old + ".")), name)
        )
        strange = [name for name in adapter.layers if name not in read.sites]
    stacks = {module: _stack(read, module) for name in strange if (module := module_of(name))}
    known = {module: stack for module, stack in stacks.items() if stack is not None}
    if known:
        adapter = stacked(adapter, known)
    split = [name for name in strange if isinstance(adapter.layers.get(name), ExpertsUpdate)]
    return split_experts(adapter) if any(_has_layers(read, name) for name in split) else adapter


def _moved(read: Survey, names: Iterable[str]) -> dict[str, str]:
    """The modules of experts that the model has under the name of another version of transformers."""
    modules = {
        module for name in names if (module := module_of(name) or name.rpartition(".")[0]) and module not in read.modules
    }
    moved = {module: module.replace(_OLD, _NEW) for module in modules if module.endswith(_OLD)}
    return {old: new for old, new in moved.items() if new in read.modules}


def _stack(read: Survey, module: str) -> Stack | None:
    """How the model keeps the experts of `module` together; None where it does not."""
    weights = {name: site for name in (BOTH, "up_proj", "down_proj") if (site := read.sites.get(f"{module}.{name}"))}
    kept = {name: site for name, site in weights.items() if isinstance(site, layers.ExpertWeight)}
    if not kept:
        return None
    first: Any = next(iter(kept.values()))
    return Stack(len(first.weight), BOTH in kept, not vars(first.owner).get("is_concatenated", True))


def _has_layers(read: Survey, name: str) -> bool:
    """Whether the first expert of the module that the Parameter `name` would be in has layers of its own."""
    module = name.rpartition(".")[0]
    return any(f"{module}.0.{leaf}" in read.sites for leaf in ("gate_proj", "up_proj", "down_proj"))
