"""From a `LoRAConfig` to the names of the layers that it targets in a model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from .. import layers, patterns, quant
from ..adapters.fused_update import FusedUpdate
from ..config import ALL_LINEAR, LoRAConfig
from ..errors import TargetError
from ..patterns import within
from .module_tree import join, own_parameters
from .resized import output_embedding
from .surroundings import Reasons, called_on_request, fresh_heads, parts_of_choosers, read_by_kernels, slices_problem
from .survey import Survey

_OF_LINEAR = frozenset({"in_features", "out_features"})


def saved_names(read: Survey, config: LoRAConfig) -> list[str]:
    """The modules that `config.modules_to_save` names; `TargetError` for an entry that matches none."""
    if not config.modules_to_save:
        return []
    names = list(filter(None, read.modules))
    return patterns.match(names, config.modules_to_save, "modules_to_save", type(read.model).__name__)


def _match(modules: Mapping[str, nn.Module], pattern: str | Sequence[str], field: str, model: str) -> list[str]:
    """The names that `pattern` matches; an `nn.MultiheadAttention` stands for its four projections."""
    can_be = [
        name for name, m in modules.items() if name and (layers.handler_of(type(m)) or isinstance(m, nn.MultiheadAttention))
    ]
    names = patterns.match(list(filter(None, modules)), pattern, field, model, can_be)
    whole = {name for name in names if isinstance(modules[name], nn.MultiheadAttention)}
    if not whole:
        return names
    parts = {join(name, part) for name in whole for part in (*layers.PROJECTIONS, "out_proj")}
    chosen = (set(names) - whole) | parts
    return [name for name in modules if name in chosen]


class Targets(NamedTuple):
    """The names of the layers to adapt, in the model's order, and why others that hold matrices are not among them."""

    names: list[str]
    left_out: dict[str, str]


def find_targets(read: Survey, config: LoRAConfig) -> Targets:
    """The layers that `config` targets.

    Raises `TargetError` when a pattern matches nothing or matches a layer that cannot be adapted.
    """
    where = type(read.model).__name__
    if layers.handler_of(type(read.model)):
        raise TargetError(f"{where} is itself a layer, and layers are known by name; put it in an nn.Sequential first.")
    found = _all_linear(read, config) if config.target_modules == ALL_LINEAR else _named(read, config)
    if config.target_parameters:
        chosen = {*found.names, *_parameters(read, config.target_parameters)}
        left_out = {name: reason for name, reason in found.left_out.items() if name not in chosen}
        found = Targets([name for name in read.sites if name in chosen], left_out)
    if config.exclude_modules:
        excluded = set(_match(read.sites, config.exclude_modules, "exclude_modules", where))
        excluded |= {
            name for name, site in read.sites.items() if isinstance(site, layers.ExpertWeight) and _owner(name) in excluded
        }
        left_out = found.left_out | {name: "it is in exclude_modules" for name in found.names if name in excluded}
        found = Targets([name for name in found.names if name not in excluded], left_out)
        if not found.names:
            raise TargetError(f"exclude_modules leaves no layer of {where} to adapt. Nothing was changed.")
    for name in found.names:
        if problem := _problem(read, name, config):
            raise TargetError(f"{name!r} of {where} cannot be adapted: {problem}. Nothing was changed.")
    return found


def _problem(read: Survey, name: str, config: LoRAConfig) -> str | None:
    """Why the layer `name` cannot be adapted as `config` asks, or None."""
    layer = read.sites[name]
    slices = {} if isinstance(layer, layers.ExpertWeight) else slices_of(name, config)
    if problem := read.layer_problem(layer, config.lora_dropout, FusedUpdate if slices else None):
        return problem
    parent, _, leaf = name.rpartition(".")
    return slices_problem(read.sites[parent], leaf, layer, slices) if slices and parent in read.sites else None


def _all_linear(read: Survey, config: LoRAConfig) -> Targets:
    reasons = _reasons(read, config)
    names, left_out = [], {}
    for name, module in read.sites.items():
        reason = reasons.get(id(module))
        if isinstance(module, layers.ExpertWeight):
            reason = reason or _reason_of_experts(read, module, config)
            if reason is None:
                names.append(name)
            else:
                left_out[name] = reason
        elif layers.is_linear(module) and reason is None:
            names.append(name)
        elif name and name not in read.adapted and _holds_matrices(module):
            left_out[name] = reason or _kind(module)
    left_out |= {leaf: _kind(read.model) for leaf, own in own_parameters(read.model).items() if own.dim() > 1}
    if not names and not config.target_parameters:
        raise TargetError(
            f"target_modules={ALL_LINEAR!r}: {type(read.model).__name__} has no linear layer to adapt. Nothing was changed."
        )
    return Targets(names, left_out)


def _reasons(read: Survey, config: LoRAConfig) -> Reasons:
    """Why "all-linear" leaves out modules that it could take by their kind, by their ids. What is listed last counts."""
    modules, saved = read.modules.values(), saved_names(read, config)
    reasons = fresh_heads(modules) | read_by_kernels(modules) | called_on_request(modules) | parts_of_choosers(modules)
    reasons |= read.unreached
    if (output := output_embedding(read.model)) is not None:
        reasons[id(output)] = "it is the output embedding"
    return reasons | {id(m): "it is in modules_to_save" for name, m in read.modules.items() if within(name, saved)}


def _holds_matrices(module: nn.Module) -> bool:
    """Whether `module` itself holds what an update could change: a matrix, or what a quantized linear layer makes of one."""
    if isinstance(module, nn.MultiheadAttention) and layers.attention_problem(module) is None:  # its projections do
        return False
    matrices = [name for name, own in own_parameters(module).items() if own.dim() > 1]
    if matrices and not layers.handler_of(type(module)):  # what else there is are the weights of experts, and their biases
        experts = layers.expert_weights(module)
        matrices = [name for name in matrices if name not in experts and not (experts and name.endswith("bias"))]
    return bool(matrices) or vars(module).keys() >= _OF_LINEAR


def _kind(module: nn.Module) -> str:
    if problem := quant.problem(module):
        return problem
    cls = type(module)
    if layers.handler_of(cls):
        return f"{cls.__name__} layers are adapted when target_modules names them"
    other = vars(nn).get(cls.__name__, cls) is not cls  # such as the quantized Linear
    return f"{f'{cls.__module__}.' if other else ''}{cls.__name__} layers cannot be adapted"


def _reason_of_experts(read: Survey, weight: layers.ExpertWeight, config: LoRAConfig) -> str | None:
    """Why "all-linear" leaves out a 3-D Parameter, or None."""
    if not layers.are_experts(weight.owner):
        return f"{type(weight.owner).__name__} holds it as a 3-D Parameter, which target_parameters can name"
    return read.layer_problem(weight, config.lora_dropout)


def _named(read: Survey, config: LoRAConfig) -> Targets:
    if not config.target_modules and not config.target_parameters:
        raise TargetError("target_modules=[] names no layer to adapt. Nothing was changed.")
    modules = {name: module for name, module in read.sites.items() if not isinstance(module, layers.ExpertWeight)}
    if not config.target_modules:
        return Targets([], {})
    return Targets(_match(modules, config.target_modules, "target_modules", type(read.model).__name__), {})


def _parameters(read: Survey, entries: Sequence[str]) -> list[str]:
    """The 3-D Parameters that `entries` name; `TargetError` for an entry that names none."""
    weights = [name for name, site in read.sites.items() if isinstance(site, layers.ExpertWeight)]
    for entry in entries:
        others = [name for name in read.parameters if patterns.ends_with(name, entry) and name not in weights]
        if others and not any(patterns.ends_with(name, entry) for name in weights):
            owner = read.modules[_owner(others[0])]
            layer = f"name its layer in target_modules: {_owner(others[0])!r}" if layers.handler_of(type(owner)) else ""
            raise TargetError(
                f"target_parameters: {others[0]!r} has {read.parameters[others[0]].dim()} dimensions, and belongs to a "
                f"{type(owner).__name__}; expected a 3-D Parameter, one matrix for each expert"
                f"{'; ' if layer else ''}{layer}. Nothing was changed."
            )
    return patterns.match(weights, entries, "target_parameters", type(read.model).__name__, weights)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def slices_of(name: str, config: LoRAConfig) -> dict[str, tuple[Any, ...]]:
    """Which slices of the layer `name` get updates, and how wide they are; empty for a layer that is not sliced."""
    if not config.enable_lora and not config.slice_widths:
        return {}
    mask, widths = patterns.lookup(config.masks, name, ()), patterns.lookup(config.slice_widths, name, ())
    return {"enable_lora": tuple(mask), "widths": tuple(widths)} if mask or widths else {}
