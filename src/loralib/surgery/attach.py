"""`attach`: put an adapter on a model. All or nothing: everything that does not fit is listed before anything changes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from .. import layers, patterns
from ..adapters.adapter import Adapter
from ..adapters.token_rows import TokenRows
from ..adapters.updates import LoRAUpdate
from ..errors import AttachError
from ..layers import AdaptedLayer
from ..patterns import within
from ..tensors import same_bits
from .extract import token_rows
from .inject import adopt_in
from .module_tree import named_tensors, owner, tie_problem, tied_names, unwrap
from .saved_modules import check_enabled, record, set_aside
from .survey import adapted_layers, layer_problem, owners, sites
from .trainable import bias_names, is_factor, trained_names

T = TypeVar("T")


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
    modules, present = sites(model), adapted_layers(model)
    updates = {n: present[n].own_form(update) if n in present else update for n, update in adapter.layers.items()}
    tensors = named_tensors(model) if adapter.tensors or adapter.rows else {}
    dropout = adapter.config.lora_dropout
    owner = owners(model)
    problems = [p for name in adapter.layers if (p := _misfit(owner, modules, name, updates[name], dropout, bool(present)))]
    if present:
        problems += [f"{n}: adapted in the model, not in the adapter" for n in present if n not in adapter.layers]
        beside = sorted(name for name in trained_names(model) if not is_factor(name))
        problems += [f"{n}: trained in the model, not in the adapter" for n in beside if n not in adapter.tensors]
        held = {n: rows.indices for n, rows in token_rows(model).items()}
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
    if not problems and (problem := tie_problem(model, adapter.tensors)):
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
    kept, saved = record(model), adapter.config.modules_to_save
    kept.bias = adapter.config.bias
    kept.modules = tuple(name for name in modules if any(patterns.ends_with(name, entry) for entry in saved))
    named = bias_names(model, kept.bias)
    strays = [name for name in adapter.tensors if name not in named and not within(name, kept.modules)]
    kept.modules += tuple(dict.fromkeys(name.rpartition(".")[0] for name in strays))
    set_aside(model, adapter.tensors)
    with torch.no_grad():
        tensors = named_tensors(model) if adapter.tensors else {}
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
    names, kept = tied_names(model, name), record(model)
    set_aside(model, names)
    kept.rows |= {tied: rows.indices for tied in names if tied in kept.originals}
    tensor = named_tensors(model)[name]
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
    if isinstance(layer := owner(model, name)[0], AdaptedLayer) and layer.merged:
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
    handler = layers.handler_of(type(layer), type(update))
    assert handler is not None
    misfit = handler.misfit(layer, update)
    return misfit and f"{name}: {misfit}"
