"""`extract`: copy what was trained out of a model, as an `Adapter`."""

from dataclasses import replace

from torch import Tensor, nn

from .. import layers
from ..adapters.adapter import Adapter
from ..adapters.token_rows import TokenRows
from ..config import LoRAConfig
from ..errors import LayerError
from ..layers import AdaptedLayer, LoRALayer
from ..patterns import within
from .module_tree import join, named_tensors, unwrap
from .saved_modules import check_enabled, records
from .survey import require_adapted
from .trainable import bias_names, is_factor, trained_names


def _plain_copy(name: str, tensor: Tensor) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise LayerError(f"{name!r} is a {type(tensor).__name__}; gather it into a plain tensor first. Nothing was extracted.")
    if tensor.is_meta or not tensor.numel():
        raise LayerError(
            f"{name!r} holds no data (shape {tuple(tensor.shape)}, device {tensor.device}): its values are elsewhere, "
            "offloaded or partitioned; gather them first. Nothing was extracted."
        )
    return tensor.detach().clone()


def extract(model: nn.Module) -> Adapter:
    """What training changed in `model`, as a value: a copy of every update and of every tensor trained beside them.

    Names are relative to `model` (wrappers of DDP and `torch.compile` aside). Merged and unmerged models give the same.
    Raises `LayerError` when there is nothing to extract, or a tensor is sharded or offloaded.

    >>> import loralib as lora
    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
    >>> lora.extract(model)
    Adapter(1 layer of rank 2, 32 parameters, 0 tensors beside)
    """
    model = unwrap(model)
    check_enabled(model, "extracted from")
    found = require_adapted(model)
    for name, module in model.named_modules():
        if isinstance(module, LoRALayer) and module.r and not isinstance(module, AdaptedLayer):
            raise LayerError(
                f"{name!r} is a {type(module).__name__}, whose update only it knows; use lora_state_dict. "
                "Nothing was extracted."
            )
    updates = {}
    for name, layer in found.items():
        update = layer.update
        A, B = (_plain_copy(join(name, key), factor) for key, factor in (("lora_A", update.A), ("lora_B", update.B)))
        updates[name] = replace(update, A=A, B=B)
    beside = {name for name in trained_names(model) if not is_factor(name)}
    tensors = {name: _plain_copy(name, tensor) for name, tensor in model.state_dict().items() if name in beside}
    return Adapter(_settings(model, found, tensors), updates, tensors, rows=token_rows(model))


def token_rows(model: nn.Module) -> dict[str, TokenRows]:
    """The rows that an adapter brought, each under the first of the names that its tensor has."""
    found, seen = {}, set()
    tensors = named_tensors(model)
    for prefix, _, kept in records(model):
        for name, indices in kept.rows.items():
            tensor = tensors[join(prefix, name)]
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[join(prefix, name)] = TokenRows(indices, _plain_copy(name, tensor)[list(indices)])
    return found


def _settings(model: nn.Module, found: dict[str, AdaptedLayer], tensors: dict[str, Tensor]) -> LoRAConfig:
    """The settings that the layers' updates do not say."""
    linear = [layer for layer in found.values() if isinstance(layer, layers.LinearLoRA)]
    dropouts = [layer.lora_dropout.p for layer in found.values() if isinstance(layer.lora_dropout, nn.Dropout)]
    biases = {kept.bias for _, _, kept in records(model)} - {"none"}
    bias = biases.pop() if biases else "none"
    modules = [join(prefix, name) for prefix, _, kept in records(model) for name in kept.modules]
    named = bias_names(model, bias)
    others = [name.rpartition(".")[0] for name in tensors if name not in named and not within(name, modules)]
    return LoRAConfig(
        lora_dropout=max(dropouts, default=0.0),
        modules_to_save=tuple(dict.fromkeys([*modules, *others])),
        bias=bias,
        fan_in_fan_out=bool(linear) and all(layer.fan_in_fan_out for layer in linear),
    )
