"""From a `LoRAConfig` to the names of the layers that it targets in a model."""

from collections.abc import Callable, Sequence

from torch import nn

from .. import layers, patterns
from ..adapters.updates import FusedUpdate
from ..config import ALL_LINEAR, LoRAConfig
from ..errors import TargetError
from ..patterns import within
from .module_tree import join
from .survey import layer_problem, owners, sites


def saved_names(model: nn.Module, config: LoRAConfig) -> list[str]:
    """The modules of `model` that `config.modules_to_save` names; `TargetError` for an entry that matches none."""
    if not config.modules_to_save:
        return []
    names = [name for name, _ in model.named_modules() if name]
    return patterns.match(names, config.modules_to_save, "modules_to_save", type(model).__name__)


def _output_embedding(model: nn.Module) -> nn.Module | None:
    """The layer that maps hidden states to the vocabulary, where the model follows Hugging Face's protocol for it."""
    protocol: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    return protocol() if protocol else None


def _match(modules: dict[str, nn.Module], pattern: str | Sequence[str], field: str, model: str) -> list[str]:
    """The names that `pattern` matches; an `nn.MultiheadAttention` stands for its four projections."""
    names = patterns.match([name for name in modules if name], pattern, field, model)
    whole = [name for name in names if isinstance(modules[name], nn.MultiheadAttention)]
    parts = {join(name, part) for name in whole for part in (*layers.PROJECTIONS, "out_proj")}
    return [name for name in modules if (name in names and name not in whole) or name in parts]


def find_targets(model: nn.Module, config: LoRAConfig) -> list[str]:
    """The names of the layers that `config` targets in `model`, in the model's order.

    Raises `TargetError` when a pattern matches nothing or matches a layer that cannot be adapted.
    """
    modules, where = sites(model), type(model).__name__
    if layers.handler_of(type(model)):
        raise TargetError(f"{where} is itself a layer, and layers are known by name; put it in an nn.Sequential first.")
    if config.target_modules == ALL_LINEAR:
        saved, output = saved_names(model, config), _output_embedding(model)
        names = [n for n, m in modules.items() if layers.is_linear(m) and m is not output and not within(n, saved)]
        if not names:
            raise TargetError(f"target_modules={ALL_LINEAR!r}: {where} has no linear layer to adapt. Nothing was changed.")
    else:
        names = _match(modules, config.target_modules, "target_modules", where)
        if not names:
            raise TargetError("target_modules=[] names no layer to adapt. Nothing was changed.")
    if config.exclude_modules:
        excluded = set(_match(modules, config.exclude_modules, "exclude_modules", where))
        names = [name for name in names if name not in excluded]
        if not names:
            raise TargetError(f"exclude_modules leaves no layer of {where} to adapt. Nothing was changed.")
    owner = owners(model)
    for name in names:
        is_sliced = any(patterns.lookup(field, name, ()) for field in (config.masks, config.slice_widths))
        update_class = FusedUpdate if is_sliced else None
        if problem := layer_problem(owner.get(id(modules[name])), modules[name], config.lora_dropout, update_class):
            raise TargetError(f"{name!r} of {where} cannot be adapted: {problem}. Nothing was changed.")
    return names
