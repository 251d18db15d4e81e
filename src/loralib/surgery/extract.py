"""`extract`: copy what was trained out of a model, as an `Adapter`."""

import warnings
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from .. import layers
from ..adapters.adapter import Adapter
from ..adapters.token_rows import TokenRows
from ..adapters.updates import LoRAUpdate
from ..choices import Bias
from ..config import LoRAConfig
from ..errors import LayerError
from ..layers import AdaptedLayer, LoRALayer
from ..patterns import within
from . import shared
from .module_tree import join, own_parameters, persistent_buffers
from .resized import check_sizes
from .statistics import moved_statistics
from .survey import Survey
from .trainable import bias_names, check_complete, extra_names, factors


def _check_held(name: str, tensor: Tensor) -> None:
    """`LayerError` when the values of `tensor` are not all here."""
    if type(tensor) not in (Tensor, nn.Parameter):
        raise LayerError(f"{name!r} is a {type(tensor).__name__}; gather it into a plain tensor first. Nothing was extracted.")
    if tensor.is_meta or not tensor.numel():
        raise LayerError(
            f"{name!r} holds no data (shape {tuple(tensor.shape)}, device {tensor.device}): its values are elsewhere, "
            "offloaded or partitioned; gather them first. Nothing was extracted."
        )


def _plain_copy(name: str, tensor: Tensor) -> Tensor:
    _check_held(name, tensor)
    return tensor.detach().clone()


def extract(model: nn.Module, strict: bool = False) -> Adapter:
    """Copy the trained LoRA weights (and `modules_to_save`) out of `model` as an `Adapter`.

    Merged and unmerged models give the same. Warns when running statistics (batch norm's) have moved since the update was put
    on and `modules_to_save` does not name their modules: they are not in the adapter.

    Args:
        model: A model with LoRA layers. Names in the adapter are relative to it, without the wrappers around it or its parts
            (DDP, FSDP, checkpoint_wrapper, `torch.compile` …).
        strict: Refuse updates that training has not changed: ΔW is still zero, as it starts.

    Returns:
        The adapter. Its tensors share no memory with the model.

    Raises:
        LayerError: When there is nothing to extract, or a tensor is sharded or offloaded; with `strict`, when an update is
            zero.
        ArgumentError: When `model` is not a module.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
        >>> lora.extract(model)
        Adapter(1 layer, r=2, 32 parameters, 0 extra tensors)
    """
    read = Survey(model)
    read.check_enabled("extracted from")
    read.require_adapted()
    shared.check_gathered(read)
    check_sizes(read, "extracted from")
    held = {id(factor) for layer in read.adapted.values() for factor in (layer.lora_A, layer.lora_B)}
    for name, module in read.modules.items():
        unknown = isinstance(module, LoRALayer) and module.r and not isinstance(module, AdaptedLayer)
        if unknown or any(id(factor) not in held for factor in factors(module).values()):
            raise LayerError(
                f"{name!r} is a {type(module).__name__}, whose update only it knows; use lora_state_dict. "
                "Nothing was extracted."
            )
    updates = {name: _copied(name, layer) for name, layer in read.adapted.items()}
    if strict:
        _check_changed(updates)
    tensors = _extra_tensors(read)
    _warn_of_statistics(read, tensors)
    return Adapter(_settings(read, tensors), updates, tensors, rows=token_rows(read))


def _check_changed(updates: Mapping[str, LoRAUpdate]) -> None:
    """`LayerError` when updates are zero, as all are before they are trained."""
    if zero := [name for name, update in updates.items() if not (update.A.any() and update.B.any())]:
        raise LayerError(
            f"{len(zero)} of {len(updates)} updates are zero, {zero[0]!r} first: no gradient has reached them (see "
            "check_trained). Nothing was extracted."
        )


def _copied(name: str, layer: AdaptedLayer) -> LoRAUpdate:
    for key, factor in layer.adapter_parameters().items():
        _check_held(join(name, key), factor)
    update = layer.update
    return update.with_tensors({key: _plain_copy(join(name, key), tensor) for key, tensor in update.tensors().items()})


def _warn_of_statistics(read: Survey, tensors: Iterable[str]) -> None:
    if moved := moved_statistics(read, tensors):
        shown = ", ".join(map(repr, moved[:4])) + (f" and {len(moved) - 4} more" if len(moved) > 4 else "")
        warnings.warn(
            f"The running statistics of {shown} have moved since the update was put on, and are not in the adapter, which "
            "computes something else on a fresh base: name them in modules_to_save, or leave them in evaluation mode while you "
            "train.",
            stacklevel=3,
        )


def _extra_tensors(read: Survey) -> dict[str, Tensor]:
    """Copies of the tensors trained in full, in the order of the state dict."""
    extra = extra_names(read)
    places = [(name, module) for name, module in read.places if module._parameters or module._buffers] if extra else []
    held = [(join(name, leaf), leaf, m) for name, m in places for leaf in (*own_parameters(m), *persistent_buffers(m))]
    check_complete(extra, [name for name, _, _ in held], "extracted")
    return {name: _plain_copy(name, layers.original(module, leaf)) for name, leaf, module in held if name in extra}


def token_rows(read: Survey) -> dict[str, TokenRows]:
    """The rows that an adapter brought, each under the first of the names that its tensor has."""
    found, seen = {}, set()
    for prefix, _, kept in read.records:
        for name, indices in kept.rows.items():
            tensor = read.tensors[join(prefix, name)]
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[join(prefix, name)] = TokenRows(indices, _plain_copy(name, tensor)[list(indices)])
    return found


def _settings(read: Survey, tensors: dict[str, Tensor]) -> LoRAConfig:
    """The settings that the layers' updates do not say."""
    linear = [layer for layer in read.adapted.values() if isinstance(layer, layers.LinearLoRA)]
    dropouts = [layer.lora_dropout.p for layer in read.adapted.values() if isinstance(layer.lora_dropout, nn.Dropout)]
    biases = [kept.bias for _, _, kept in read.records if kept.bias != "none"]
    bias: Bias = biases[0] if biases else "none"
    modules = [join(prefix, name) for prefix, _, kept in read.records for name in kept.modules]
    named = bias_names(read, bias)
    others = [name.rpartition(".")[0] for name in tensors if name not in named and not within(name, modules)]
    return LoRAConfig(
        lora_dropout=max(dropouts, default=0.0),
        modules_to_save=tuple(dict.fromkeys([*modules, *others])),
        bias=bias,
        fan_in_fan_out=bool(linear) and all(layer.fan_in_fan_out for layer in linear),
    )
