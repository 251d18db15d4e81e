"""Adapters out of models and onto them: `extract` what was learned, `attach` what someone else learned.

Both are all or nothing: `attach` first lists everything that does not fit, and acts only when nothing is on the list.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from . import layers, patterns, surgery, trained
from .adapters.adapter import Adapter, described
from .adapters.token_rows import TokenRows
from .adapters.updates import LoRAUpdate
from .config import LoRAConfig
from .errors import AttachError, LayerError
from .layers import AdaptedLayer, LoRALayer
from .patterns import within
from .surgery import adapted_layers, adopt_in, layer_problem, require_adapted
from .tensors import same_bits
from .trained import check_enabled, join, unwrap

T = TypeVar("T")


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
    beside = {name for name in trained.trained_names(model) if not trained.is_factor(name)}
    tensors = {name: _plain_copy(name, tensor) for name, tensor in model.state_dict().items() if name in beside}
    return Adapter(_derived_config(model, found, tensors), updates, tensors, rows=_rows(model))


def _rows(model: nn.Module) -> dict[str, TokenRows]:
    """The rows that an adapter brought, each under the first of the names that its tensor has."""
    found, seen = {}, set()
    tensors = trained.named_tensors(model)
    for prefix, _, kept in trained.records(model):
        for name, indices in kept.rows.items():
            tensor = tensors[join(prefix, name)]
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[join(prefix, name)] = TokenRows(indices, _plain_copy(name, tensor)[list(indices)])
    return found


def _derived_config(model: nn.Module, found: dict[str, AdaptedLayer], tensors: dict[str, Tensor]) -> LoRAConfig:
    """The configuration that describes the layers as they are, with full names as targets."""
    linear = [layer for layer in found.values() if isinstance(layer, layers.LinearLoRA)]
    dropouts = [layer.lora_dropout.p for layer in found.values() if isinstance(layer.lora_dropout, nn.Dropout)]
    biases = {kept.bias for _, _, kept in trained.records(model)} - {"none"}
    bias = biases.pop() if biases else "none"
    modules = [join(prefix, name) for prefix, _, kept in trained.records(model) for name in kept.modules]
    named = trained.bias_names(model, bias)
    others = [name.rpartition(".")[0] for name in tensors if name not in named and not within(name, modules)]
    config = LoRAConfig(
        lora_dropout=max(dropouts, default=0.0),
        modules_to_save=tuple(dict.fromkeys([*modules, *others])),
        bias=bias,
        fan_in_fan_out=bool(linear) and all(layer.fan_in_fan_out for layer in linear),
    )
    return described(config, {name: layer.update for name, layer in found.items()})


def attach(model: nn.Module, adapter: Adapter) -> list[str]:
    """Put `adapter` on `model`, in place: adapt the layers it needs, load its factors and the tensors trained beside them.

    On a model that was injected already, the factors are loaded into the layers that are there (the Parameters stay the
    same objects), and the layers must be the adapter's, up to the form in which their factors are kept. The names of the
    adapted layers are returned.
    Rows of tokens are put into a copy of the embedding, and of a head that is tied to it; they are not trained further.
    Strict: everything missing, left over or of another shape is listed in one `AttachError`, and the model is as it was.

    >>> import loralib as lora
    >>> model, other = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
    >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
    >>> lora.attach(other, lora.extract(model))
    ['0']
    """
    model = unwrap(model)
    check_enabled(model, "attached to")
    modules, present = surgery.sites(model), adapted_layers(model)
    updates = {n: present[n].own_form(update) if n in present else update for n, update in adapter.layers.items()}
    tensors = trained.named_tensors(model) if adapter.tensors or adapter.rows else {}
    dropout = adapter.config.lora_dropout
    owner = surgery.owners(model)
    problems = [p for name in adapter.layers if (p := _misfit(owner, modules, name, updates[name], dropout, bool(present)))]
    if present:
        problems += [f"{n}: adapted in the model, not in the adapter" for n in present if n not in adapter.layers]
        beside = sorted(name for name in trained.trained_names(model) if not trained.is_factor(name))
        problems += [f"{n}: trained in the model, not in the adapter" for n in beside if n not in adapter.tensors]
        held = {n: rows.indices for n, rows in _rows(model).items()}
        problems += [
            f"{n}: other rows in the model" for n, i in held.items() if n not in adapter.rows or adapter.rows[n].indices != i
        ]
    for name, tensor in adapter.tensors.items():
        if name not in tensors:
            problems.append(f"{name}: no such tensor in the model")
        elif tensors[name].shape != tensor.shape:
            problems.append(f"{name}: shape {tuple(tensor.shape)} in the adapter, {tuple(tensors[name].shape)} in the model")
    problems += [f"{n}: {problem}" for n, rows in adapter.rows.items() if (problem := _rows_misfit(model, tensors, n, rows))]
    problems += _tie_conflicts(tensors, adapter.tensors, same_bits) + _tie_conflicts(tensors, adapter.rows, TokenRows.__eq__)
    if not problems and (problem := trained.tie_problem(model, adapter.tensors)):
        problems.append(problem)
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise AttachError(f"The adapter does not fit {type(model).__name__}: {shown}. Nothing was changed.")
    for name, update in updates.items():
        layer = modules[name]
        if isinstance(layer, AdaptedLayer):
            layer.load_update(update)
        else:
            assert isinstance(layer.weight, Tensor)
            device = layer.weight.device
            own = replace(update, A=update.A.to(device, copy=True), B=update.B.to(device, copy=True))
            adopt_in(owner.get(id(layer)), layer, own, dropout)
    _put_beside(model, modules, adapter)
    return list(adapter.layers)


def _put_beside(model: nn.Module, modules: Iterable[str], adapter: Adapter) -> None:
    """Put what was trained beside the factors into copies of the tensors that it takes the places of, and record it."""
    kept, saved = trained.record(model), adapter.config.modules_to_save
    kept.bias = adapter.config.bias
    kept.modules = tuple(name for name in modules if any(patterns.ends_with(name, entry) for entry in saved))
    named = trained.bias_names(model, kept.bias)
    strays = [name for name in adapter.tensors if name not in named and not within(name, kept.modules)]
    kept.modules += tuple(dict.fromkeys(name.rpartition(".")[0] for name in strays))
    trained.set_aside(model, adapter.tensors)
    with torch.no_grad():
        tensors = trained.named_tensors(model) if adapter.tensors else {}
        for name, tensor in adapter.tensors.items():
            tensors[name].copy_(tensor)
    for name, rows in adapter.rows.items():
        _put_rows(model, name, rows)


def _tie_conflicts(tensors: dict[str, Tensor], held: Mapping[str, T], same: Callable[[T, T], bool]) -> list[str]:
    """What the adapter holds differently for names that are one tensor in the model."""
    first: dict[int, str] = {}
    problems = []
    for name, value in held.items():
        if name in tensors and not same(value, held[other := first.setdefault(id(tensors[name]), name)]):
            problems.append(f"{name}: tied to {other} in the model, and differs from it in the adapter")
    return problems


def _put_rows(model: nn.Module, name: str, rows: TokenRows) -> None:
    """Put `rows` into a copy of the tensor `name`, which takes its place under all of its names."""
    names, kept = trained.tied_names(model, name), trained.record(model)
    trained.set_aside(model, names)
    kept.rows |= {tied: rows.indices for tied in names if tied in kept.originals}
    tensor = trained.named_tensors(model)[name]
    with torch.no_grad():
        tensor[list(rows.indices)] = rows.values.to(tensor)


def _rows_misfit(model: nn.Module, tensors: dict[str, Tensor], name: str, rows: TokenRows) -> str | None:
    """Why `rows` cannot be put into the tensor `name` of the model, or None."""
    if name not in tensors:
        return "no such tensor in the model"
    tensor, last = tensors[name], max(rows.indices, default=-1)
    if tensor.shape[1:] != rows.values.shape[1:]:
        return f"rows of shape {tuple(rows.values.shape[1:])} in the adapter, {tuple(tensor.shape[1:])} in the model"
    if last >= len(tensor):
        return f"the adapter has row {last}, the model {len(tensor)} rows; resize the model's embeddings first"
    if isinstance(layer := trained.owner(model, name)[0], AdaptedLayer) and layer.merged:
        return "the layer is merged, and rows of its weight are to be replaced; unmerge the model first"
    return None


def _misfit(
    owner: dict[int, nn.Module],
    modules: dict[str, nn.Module],
    name: str,
    update: LoRAUpdate,
    lora_dropout: float,
    injected: bool,
) -> str | None:
    """Why the update of the layer `name` does not fit the one in the model, or None."""
    layer = modules.get(name)
    if layer is None:
        return f"{name}: no such layer in the model"
    if update.magnitude is not None:
        return f"{name}: a DoRA update, which layers here do not compute; merge it into the model's files (merge_checkpoint)"
    if isinstance(layer, AdaptedLayer) and layer.has_update:
        misfit = layer.misfit(layer, update)
        return misfit and f"{name}: {misfit}"
    if injected:
        return f"{name}: adapted in the adapter, not in the model"
    if problem := layer_problem(owner.get(id(layer)), layer, lora_dropout, type(update)):
        return f"{name}: {problem}"
    treatment = layers.treatment(type(layer), type(update))
    assert treatment is not None
    misfit = treatment.misfit(layer, update)
    return misfit and f"{name}: {misfit}"
