"""Which tensors belong to the adapter: one predicate decides what is trained, saved and loaded.

A tensor of a model belongs to the adapter when
  - its layer says so: a layer of ours by `AdaptedLayer.adapter_parameters`, which lists the factors; a subclass of 0.1's layers
    by the names it gives, as in 0.1 (what starts with `lora_` inside that layer, in its children too), or
  - it is called `lora_…` itself, in any other module (0.1 trains such Parameters); what a *module* is called says nothing, or
  - it is a bias that the mode `bias` names, or
  - `inject` or `attach` recorded it as trained in full in addition to the factors (a new head, say).

The record is on the module that was injected, with the originals of the tensors it names, so that `eject` and `disabled`
can put them back.
"""

import warnings
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from .. import tensors
from ..choices import Bias
from ..config import check_bias
from ..errors import LayerError
from ..layers import AdaptedLayer, LoRALayer, MultiheadAttentionLoRA, quiet_state_dict
from ..patterns import within
from .module_tree import join, own_parameters, persistent_buffers, walk
from .resized import check_sizes
from .saved_modules import record
from .survey import Survey
from .wrappers import plain_name


def bias_names(read: Survey, bias: Bias, layers: Iterable[nn.Module] | None = None) -> set[str]:
    """The parameters that the mode names: those called `bias` of `layers` (default: all that carry an update), of all, or of
    none."""
    if bias == "none":
        return set()
    chosen = None if layers is None else {id(layer) for layer in layers}
    biased = [(name, module) for name, module in read.places if module._parameters.get("bias") is not None]
    return {
        join(name, "bias")
        for name, module in biased
        if bias == "all" or (_carries_update(module) if chosen is None else id(module) in chosen)
    }


def _carries_update(module: nn.Module) -> bool:
    if isinstance(module, AdaptedLayer):
        return module.has_update or bool(factors(module))
    return isinstance(module, LoRALayer) and bool(module.r)


def is_bias(name: str) -> bool:
    """Whether a tensor of this name is one of those that the mode `bias` chooses among: it is *named* bias.

    >>> is_bias("query.bias"), is_bias("bias_table.weight")
    (True, False)
    """
    return name.rpartition(".")[2] == "bias"


def is_factor(name: str) -> bool:
    """Whether a tensor of this name, in a file or in a layer that is not ours, is a LoRA factor: a dotted part of it starts
    with `lora_`.

    >>> is_factor("encoder.query.lora_A"), is_factor("explora_net.weight")
    (True, False)
    """
    return name.startswith("lora_") or ".lora_" in name


def factor_names(read: Survey) -> set[str]:
    """The names of the adapter's own parameters in all layers, ours and others."""
    return {join(name, leaf) for name, module in read.places for leaf in factors(module)}


def factors(module: nn.Module) -> Mapping[str, Tensor]:
    """The adapter's own tensors in `module`, by their names in it; those of its children where it is a layer of 0.1's kind."""
    if not isinstance(module, LoRALayer):
        return {leaf: tensor for leaf, tensor in _held(module).items() if leaf.startswith("lora_")}
    if isinstance(module, AdaptedLayer) and type(module).adapter_parameters is not AdaptedLayer.adapter_parameters:
        return module.adapter_parameters()
    children = walk(module).places[1:] if module._modules else []
    inside = [("", module), *((name, m) for name, m in children if not isinstance(m, LoRALayer))]
    held = {join(name, leaf): tensor for name, m in inside for leaf, tensor in _held(m).items()}
    return {name: tensor for name, tensor in held.items() if is_factor(name)}


def _held(module: nn.Module) -> dict[str, Tensor]:
    if not module._parameters and not module._buffers:
        return {}
    return {**own_parameters(module), **persistent_buffers(module)}


def extra_names(read: Survey, bias: Bias | None = None) -> set[str]:
    """The names of the other tensors, which are trained in full. `bias` None means as recorded, else "none"."""
    names = set() if bias is None else bias_names(read, check_bias(bias))
    for prefix, _, kept in read.records:
        whole = [name for name in kept.originals if name not in kept.rows]
        names |= {join(prefix, name) for name in whole if not is_bias(name) or within(name, kept.modules)}
        if bias is None and kept.biases is None:
            names |= {name for name in bias_names(read, kept.bias) if not prefix or within(name, [prefix])}
        elif bias is None:
            names |= {join(prefix, name) for name in kept.biases or ()}
    return names - factor_names(read) if names else names


def trained_names(read: Survey, bias: Bias | None = None) -> set[str]:
    """The names of all tensors that belong to the adapter: the factors, and those that are trained in full."""
    return factor_names(read) | extra_names(read, bias)


def _check_called(read: Survey) -> None:
    """`LayerError` when a layer with an update was put by hand where torch reads its weight without calling it."""
    for name, module in read.modules.items():
        by_hand = isinstance(module, nn.MultiheadAttention) and not isinstance(module, MultiheadAttentionLoRA)
        if by_hand and any(_carries_update(child) for child in module.children()):
            where = join(name, "out_proj")
            raise LayerError(
                f"{where!r} is a LoRA layer whose weight nn.MultiheadAttention reads without calling it, so its update would "
                "have no effect: leave the plain layer there and inject a LoRAConfig that targets it. Nothing was changed."
            )


def _check_gradients_pass(read: Survey) -> None:
    """`LayerError` when a layer with an update was quantized, after that was put on, so that it passes no gradient on."""
    for name, layer in read.adapted.items():
        if tensors.quantizes_input(layer._parameters.get("weight")):
            raise LayerError(
                f"The weight of {name!r} quantizes its input too (torchao), so that no gradient passes to the layers before "
                "it; quantize the weights only. Nothing was changed."
            )


def _warn_of_names(read: Survey, trained: set[int]) -> None:
    """Warn of what loralib 0.1, to which the names of modules counted, would train in a model of layers built by hand."""
    places = [(name, module) for name, module in read.places if is_factor(name) and not isinstance(module, LoRALayer)]
    held = [(join(name, leaf), parameter) for name, module in places for leaf, parameter in own_parameters(module).items()]
    named = [name for name, parameter in held if id(parameter) not in trained]
    if named:
        warnings.warn(
            f"{named[0]!r} is frozen, with {len(named) - 1} others like it: what a module is called makes nothing in it a LoRA "
            "factor. Derive the class that holds such modules from LoRALayer to train them.",
            stacklevel=3,
        )


def mark_only_lora_as_trainable(model: nn.Module, bias: Bias | None = None) -> None:
    """Set `requires_grad` of every parameter: True for what belongs to the adapter, False for all else.

    To the adapter belong the factors, the biases that `bias` names and what the configuration's `modules_to_save` named. A
    model, or a part of one, in which there is nothing to train is frozen, with a warning.

    Args:
        model: The model.
        bias: "none", "lora_only" (those of layers with an update) or "all" (every parameter *named* bias). Default: what the
            model was injected with, else "none". A bias named here is also what `extract` and `lora_state_dict` save; one that
            the model was not injected with is trained in place, so `eject` leaves it as trained.

    Raises:
        LayerError: Inside a `disabled` block, or when a layer would be trained that is never called. No flag is changed then.
        ConfigError: When `bias` is none of these.
        ArgumentError: When `model` is not a module.

    Example:
        >>> model = nn.Sequential(lora.Linear(4, 4, r=2), nn.Linear(4, 2))
        >>> lora.mark_only_lora_as_trainable(model)
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['0.lora_A', '0.lora_B']
    """
    read = Survey(model)
    read.check_enabled("marked")
    _check_called(read)
    _check_gradients_pass(read)
    trained = {id(tensor) for module in read.modules.values() for tensor in factors(module).values()}
    if extra := extra_names(read, bias):
        trained |= {id(tensor) for name, tensor in read.tensors.items() if name in extra}
    if not read.records:
        _warn_of_names(read, trained)
    parameters = [p for module in read.modules.values() for p in module._parameters.values() if p is not None]
    if parameters and not any(id(parameter) in trained for parameter in parameters):
        warnings.warn(
            f"{type(model).__name__} has no LoRA parameter: all of it is frozen now, and nothing in it is trained. Inject a "
            "LoRAConfig, or build layers with r > 0, before you mark, unless that is what you want.",
            stacklevel=2,
        )
    for parameter in parameters:
        parameter.requires_grad_(id(parameter) in trained)
    if bias is not None:
        for _, _, kept in read.records:
            kept.bias, kept.biases = "none", None
        record(read.model).bias = bias


def lora_state_dict(model: nn.Module, bias: Bias | None = None) -> dict[str, Tensor]:
    """The part of `model.state_dict()` that belongs to the adapter.

    That is the factors, the biases that `bias` names, and what `modules_to_save` named. Names are those of
    `model.state_dict()`, whatever is wrapped around the model or its parts.

    Args:
        model: The model.
        bias: As in `mark_only_lora_as_trainable`.

    Returns:
        The tensors by name. They share memory with the model's.

    Raises:
        LayerError: Inside a `disabled` block, or when the model's state dict lacks something that is trained.
        ConfigError: When `bias` is not one of the three modes.
        ArgumentError: When `model` is not a module.

    Example:
        >>> model = nn.Sequential(lora.Linear(4, 4, r=2), nn.Linear(4, 2))
        >>> list(lora.lora_state_dict(model, bias="lora_only"))
        ['0.bias', '0.lora_A', '0.lora_B']
    """
    read = Survey(model)
    read.check_enabled("saved")
    check_sizes(read, "saved")
    state = {plain_name(model, key): (key, tensor) for key, tensor in quiet_state_dict(model).items()}
    names = trained_names(read, bias)
    if state:  # FSDP can be set to give it to the first process only
        check_complete(names, state, "saved")
    return dict(held for name, held in state.items() if name in names)


def check_complete(names: Iterable[str], state: Iterable[str], verb: str) -> None:
    """`LayerError` when one of the `names`, which are trained, is not in `state`, what the model's state dict holds."""
    if missing := sorted(set(names).difference(state)):
        raise LayerError(
            f"{missing[0]!r} is trained, but not in the model's state_dict (a hook or a wrapper of the model renames or drops "
            f"it), so it cannot be {verb}; remove that first. Nothing was {verb}."
        )
