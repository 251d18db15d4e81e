"""What the modules around a layer say about it: that its weight is read without a call, that it belongs to the adapter of
another library, that it is part of a fresh head, or how the slices of a fused projection lie. `architectures` has the names.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from torch import nn

from .. import architectures
from ..layers import AdaptedLayer, LoRALayer

Reasons = dict[int, str]
"""Why layers are not adapted, by their ids."""


def named_in(module: Any, table: str) -> frozenset[str]:
    """The children of `module` that the table of this name in `architectures` lists for its class."""
    kind: Any = type(module)
    return _named_in(kind, table)


@cache
def _named_in(cls: type, table: str) -> frozenset[str]:
    rows: Mapping[str, frozenset[str]] = getattr(architectures, table)
    known = (rows.get(base.__name__) for base in cls.__mro__ if base.__module__.partition(".")[0] in architectures.LIBRARIES)
    return frozenset[str]().union(*filter(None, known))


def read_directly(modules: Iterable[Any]) -> Reasons:
    """The layers whose weights are read by the module they are in, which does not call them."""
    found: Reasons = {}
    for module in modules:
        names = named_in(module, "READ_DIRECTLY")
        if module._parameters.get("q_bias") is not None:
            names |= named_in(module, "READ_WITH_Q_BIAS")
        for child in filter(None, map(module._modules.get, names)):
            found[id(child)] = f"{type(module).__name__} reads its weight without calling it, so an update would have no effect"
    return found


def read_by_kernels(modules: Iterable[Any]) -> Reasons:
    """The layers whose weights a fused kernel of the module they are in may read, where there is such a kernel."""
    return {
        id(child): f"a fused kernel of {type(module).__name__} may read its weight without calling it"
        for module in modules
        for child in filter(None, map(module._modules.get, named_in(module, "READ_BY_KERNELS")))
    }


def called_on_request(modules: Iterable[Any]) -> Reasons:
    """The layers in modules that the forward pass of the model they are in does not call."""
    found: Reasons = {}
    for module in modules:
        for name in named_in(module, "ON_REQUEST"):
            reason = f"{type(module).__name__} does not call it in its forward pass"
            found |= {id(part): reason for part in _below(module, name)}
    return found


def parts_of_choosers(modules: Iterable[Any]) -> Reasons:
    """The modules in those that choose positions to attend to."""
    found: Reasons = {}
    for module in _of_classes(modules, architectures.CHOOSERS):
        reason = f"{type(module).__name__} only chooses positions by it, so no gradient reaches it"
        found |= {id(part): reason for part in module.modules() if part is not module}
    return found


def routers(modules: Iterable[Any]) -> Reasons:
    """The linear layers that choose experts and return more than what they compute of their input."""
    return {
        id(module): f"{type(module).__name__} returns several tensors, to which no update can be added"
        for module in _of_classes(modules, architectures.ROUTERS)
    }


def _of_classes(modules: Iterable[Any], names: frozenset[str]) -> list[Any]:
    """Those of `modules` whose classes have one of these names, in a library that the tables are about."""
    named = [module for module in modules if type(module).__name__ in names]
    return [module for module in named if type(module).__module__.partition(".")[0] in architectures.LIBRARIES]


def parts_of_adapters(modules: Iterable[Any]) -> Reasons:
    """The modules that belong to the adapter of another library, or are factors in a LoRA layer of the user's own."""
    found: Reasons = {}
    for module in modules:
        kind: Any = type(module)
        children: Mapping[str, nn.Module] = module._modules
        if isinstance(module, LoRALayer):
            own = [] if isinstance(module, AdaptedLayer) else [name for name in children if name.startswith("lora_")]
        elif (others := _children_of_others(kind)) is not None:
            own = [name for name in children if name not in others]
        else:
            continue
        reason = f"it is part of an adapter already, in a {kind.__name__} of {kind.__module__}"
        found |= {id(part): reason for name in own for part in _below(module, name)}
    return found


@cache
def _children_of_others(cls: type) -> frozenset[str] | None:
    """Which children do not belong to the adapter that modules of class `cls` hold; None when they hold none."""
    held = (architectures.ADAPTERS.get(f"{base.__module__}.{base.__qualname__}") for base in cls.__mro__)
    return next((children for children in held if children is not None), None)


def _below(module: nn.Module, child: str) -> Iterator[nn.Module]:
    found = module._modules.get(child)
    return iter(()) if found is None else found.modules()


def fresh_heads(modules: Iterable[Any]) -> Reasons:
    """The layers outside the body of models of transformers whose head starts at random with a pretrained body."""
    found: Reasons = {}
    for module in modules:
        kind = type(module)
        prefix = getattr(kind, "base_model_prefix", "")
        if prefix in module._modules and kind.__name__.endswith(architectures.FRESH_HEADS):
            inside = {id(part) for part in _below(module, prefix)}
            reason = f"it is part of the head of {kind.__name__}, which starts at random: modules_to_save trains it in full"
            found |= {id(part): reason for part in module.modules() if id(part) not in inside and part is not module}
    return found


def slices_problem(owner: Any, name: str, layer: Any, slices: Mapping[str, Any]) -> str | None:
    """Why the fused projection `layer`, called `name` in `owner`, cannot be adapted as `slices` cuts it, or None."""
    alternating = name in named_in(owner, "INTERLEAVED")
    grouped = name in named_in(owner, "GROUPED")
    if alternating and vars(owner).get("multi_query") and not vars(owner).get("new_decoder_architecture"):
        alternating, grouped = False, True
    if alternating:
        return (
            f"in {type(owner).__name__} its rows alternate between query, key and value, head by head, so enable_lora would "
            "adapt the wrong ones; leave enable_lora out for it"
        )
    if not grouped:
        return None
    widths, n = _widths(owner, layer), len(slices["enable_lora"])
    given = slices["widths"] or ((sum(widths) // n,) * n if n and sum(widths) % n == 0 else ())
    if tuple(given) == widths:
        return None
    return f"in {type(owner).__name__} its slices (query, key, value) are {list(widths)} rows wide; say so in slice_widths"


def _widths(owner: Any, layer: Any) -> tuple[int, int, int]:
    """The rows of query, key and value in a projection of heads that share keys and values."""
    own = vars(owner)
    config: Any = own.get("config")
    heads = int(own.get("num_heads") or config.num_attention_heads)
    groups = 1 if own.get("multi_query") else int(own.get("num_key_value_heads") or config.num_key_value_heads)
    width = layer.out_features // (heads + 2 * groups)
    return heads * width, groups * width, groups * width
