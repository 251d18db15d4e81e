"""`attach`: put an adapter on a model. All or nothing: everything that does not fit is listed before anything changes."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .. import layers, patterns, tensors
from ..adapters.adapter import Adapter
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.token_rows import TokenRows
from ..adapters.updates import LoRAUpdate
from ..errors import AttachError
from ..layers import AdaptedLayer
from ..patterns import within
from ..tensors import factor_dtype, same_bits
from . import shared, tied_copies
from .bound import Bound
from .experts import as_in_model
from .extract import token_rows
from .given import as_adapter
from .inject import adopt_in, all_or_nothing
from .resized import check_sizes, remember_sizes
from .saved_modules import ExtraTensors, record, replace_with_copies
from .statistics import note_statistics
from .survey import Survey
from .trainable import bias_names, extra_names

T = TypeVar("T")


def attach(model: nn.Module, adapter: Adapter | str | os.PathLike[str]) -> Bound:
    """Put `adapter` on `model`, in place: adapt the layers it needs, load its factors and the tensors trained in full.

    Strict: raises one `AttachError` that lists all missing, unexpected and mis-shaped tensors; the model is left unchanged.

    - Updates of experts may be of all in one, as models of today hold them, or of each expert's layers, as older ones do.
    - Factors are made as `inject` makes them: in float32 where the weight or the adapter has a lower precision.
    - On a model that was injected already, the factors are loaded into the layers that are there (the Parameters stay the same
      objects), and the layers must be the adapter's, up to the form in which their factors are kept.
    - Token rows are put into a copy of the embedding, and of a head that is tied to it; they are not trained further.
    - A tensor that the model ties to another and has itself, to the last bit, is left out: PEFT stores embeddings with updates.
    - On a model on the meta device factors and other tensors are put on the adapter's device, where they wait for the base's
      weights to be loaded (`load_state_dict` with `assign=True`; `to_empty` keeps the factors only, so attach again after it).

    Args:
        model: The model, plain or with the LoRA layers of this adapter.
        adapter: An `Adapter`, or the path of one's files, as for `load`.

    Returns:
        The names of the adapted layers, as `inject` returns them.

    Raises:
        AttachError: When the adapter does not fit the model.
        LayerError: When the model is sharded, wrapped in DDP already, or inside a `disabled` block.
        FormatError: When the files at a path hold no adapter that can be read.
        ArgumentError: When `model` or `adapter` is something else.

    Example:
        >>> model, other = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
        >>> lora.attach(other, lora.extract(model))
        ['0']
    """
    read, adapter = Survey(model), as_adapter(adapter)
    read.check_enabled("attached to")
    shared.check_not_flattened(read, "attached to")
    shared.check_not_sharded(read, [*adapter.layers, *adapter.tensors, *adapter.rows], "attached to")
    check_sizes(read, "attached to")
    adapter = as_in_model(read, tied_copies.without_copies(read, adapter))
    updates = {name: _own_form(read.adapted.get(name), update) for name, update in adapter.layers.items()}
    if problems := list(_problems(read, adapter, updates)):
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise AttachError(f"The adapter does not fit {type(read.model).__name__}: {shown}. Nothing was changed.")
    extra = _plan_extra(read, adapter)
    shared.check_synchronized(read, _added(read, adapter, extra), "attached to")
    with all_or_nothing(read):
        for name, update in updates.items():
            _put_update(read, read.sites[name], update, adapter.settings.lora_dropout)
        kept = record(read.model)
        note_statistics(read, kept)
        names = [*adapter.tensors, *(tied for names in extra.tied.values() for tied in names)]
        replace_with_copies(kept, {name: read.slots[name] for name in names}, read.replaced)
    _put_extra(read, adapter, extra, kept)
    remember_sizes(read.model, kept, {name: read.sites[name] for name in updates})
    parameters = sum(update.A.numel() + update.B.numel() for update in updates.values())
    return Bound(adapter.layers, parameters, experts=sum(isinstance(update, ExpertsUpdate) for update in updates.values()))


def _own_form(layer: AdaptedLayer | None, update: LoRAUpdate) -> LoRAUpdate:
    return update if layer is None else layer.own_form(update)


# --- what does not fit ----------------------------------------------------------------------------------------------


def _problems(read: Survey, adapter: Adapter, updates: Mapping[str, LoRAUpdate]) -> Iterator[str]:
    """Everything that keeps `adapter`, whose `updates` are in the model's own form, from being put on the model."""
    for name, update in updates.items():
        if problem := _update_problem(read, name, update, adapter.settings.lora_dropout):
            yield f"{name}: {problem}"
    if read.adapted:
        yield from _left_over(read, adapter)
    held = read.tensors if adapter.tensors or adapter.rows else {}
    for name, tensor in adapter.tensors.items():
        if name not in held:
            yield f"{name}: no such tensor in the model"
        elif held[name].shape != tensor.shape:
            yield f"{name}: shape {tuple(tensor.shape)} in the adapter, {tuple(held[name].shape)} in the model"
    for name, rows in adapter.rows.items():
        if problem := _rows_problem(read, name, rows):
            yield f"{name}: {problem}"
    yield from _tie_conflicts(held, adapter.tensors, same_bits)
    yield from _tie_conflicts(held, adapter.rows, TokenRows.__eq__)
    repeated = tied_copies.problems(read, adapter) if held else {}
    yield from (f"{name}: {problem}" for name, problem in repeated.items())
    if not repeated and all(name in held for name in adapter.tensors) and (problem := read.tie_problem(adapter.tensors)):
        yield problem


def _left_over(read: Survey, adapter: Adapter) -> Iterator[str]:
    """What an adapted model has that `adapter` does not bring."""
    for name in read.adapted:
        if name not in adapter.layers:
            yield f"{name}: adapted in the model, not in the adapter"
    for name in sorted(extra_names(read)):
        if name not in adapter.tensors:
            yield f"{name}: trained in the model, not in the adapter"
    for name, rows in token_rows(read).items():
        if name not in adapter.rows or adapter.rows[name].indices != rows.indices:
            yield f"{name}: other rows in the model"


def _update_problem(read: Survey, name: str, update: LoRAUpdate, lora_dropout: float) -> str | None:
    """Why the update of the layer `name` does not fit the one in the model, or None."""
    layer = read.sites.get(name)
    if layer is None:
        return "no such layer in the model"
    if update.magnitude is not None:
        return "a DoRA update, which layers here do not compute; merge it into the model's files (merge_checkpoint)"
    if isinstance(layer, AdaptedLayer) and layer.has_update:
        kinds = {tensors.kind(factor) for factor in layer.adapter_parameters().values()}
        if kinds & {"sharded", "partitioned"}:
            return "its factors are shared among processes; attach before they are (fully_shard, parallelize_module, DeepSpeed)"
        return layer.misfit(layer, update)
    if read.adapted:
        return "adapted in the adapter, not in the model"
    if problem := read.layer_problem(layer, lora_dropout, type(update)):
        return problem
    handler = layers.handler_of(type(layer), type(update))
    assert handler is not None
    return handler.misfit(layer, update)


def _rows_problem(read: Survey, name: str, rows: TokenRows) -> str | None:
    """Why `rows` cannot be put into the tensor `name` of the model, or None."""
    if name not in read.tensors:
        return "no such tensor in the model"
    tensor, last = read.tensors[name], max(rows.indices, default=-1)
    if tensor.is_meta:
        return "on the meta device, which cannot hold single rows; load the base's weights first"
    if tensor.shape[1:] != rows.values.shape[1:]:
        return f"rows of shape {tuple(rows.values.shape[1:])} in the adapter, {tuple(tensor.shape[1:])} in the model"
    if last >= len(tensor):
        return f"the adapter has row {last}, the model {len(tensor)} rows; resize the model's embeddings first"
    if isinstance(layer := read.slots[name].module, AdaptedLayer) and layer.merged:
        return "the layer is merged, and rows of its weight are to be replaced; unmerge the model first"
    return None


def _tie_conflicts(tensors: Mapping[str, Tensor], held: Mapping[str, T], same: Callable[[T, T], bool]) -> Iterator[str]:
    """What the adapter holds differently for names that are one tensor in the model."""
    first: dict[int, str] = {}
    for name, value in held.items():
        if name in tensors and not same(value, held[other := first.setdefault(id(tensors[name]), name)]):
            yield f"{name}: tied to {other} in the model, and differs from it in the adapter"


# --- putting it on --------------------------------------------------------------------------------------------------


def _put_update(read: Survey, layer: nn.Module, update: LoRAUpdate, lora_dropout: float) -> None:
    """Load `update` into an adapted `layer`, or adapt a plain one with a copy of it on its device; on the meta device, which
    cannot hold it, with a copy where it is."""
    if isinstance(layer, AdaptedLayer):
        layer.load_update(update)
        return
    assert isinstance(layer.weight, Tensor)
    W = layer.weight
    device, least = None if W.is_meta else W.device, factor_dtype(W)

    def made(tensor: Tensor) -> Tensor:
        return tensor.to(device, torch.promote_types(tensor.dtype, least), copy=True)

    own = update.with_tensors({key: made(tensor) for key, tensor in update.tensors().items()})
    adopt_in(read, layer, own, lora_dropout)


@dataclass(frozen=True)
class _Extra:
    """Where tensors trained in full go. modules: those to record as saved. biases: those among the tensors. tied: all names of
    each tensor with rows."""

    modules: tuple[str, ...]
    biases: frozenset[str]
    tied: dict[str, list[str]]


def _plan_extra(read: Survey, adapter: Adapter) -> _Extra:
    saved = adapter.settings.modules_to_save
    modules = [name for name in read.sites if any(patterns.ends_with(name, entry) for entry in saved)] if saved else []
    named = bias_names(read, adapter.settings.bias, [read.sites[name] for name in adapter.layers])
    strays = [name for name in adapter.tensors if name not in named and not within(name, modules)]
    modules += dict.fromkeys(name.rpartition(".")[0] for name in strays)
    return _Extra(tuple(modules), frozenset(named & adapter.tensors.keys()), {name: read.tied(name) for name in adapter.rows})


def _added(read: Survey, adapter: Adapter, extra: _Extra) -> list[str]:
    """The names of what gets new Parameters: layers that are not adapted yet, and tensors that have no copy yet."""
    whole = [*adapter.tensors, *(tied for names in extra.tied.values() for tied in names)]
    plain = [name for name in adapter.layers if name not in read.adapted]
    return plain + [name for name in whole if read.slots[name] not in read.replaced]


def _with_values(copy: Tensor, tensor: Tensor) -> Tensor:
    """What takes the place of `copy`, which is on the meta device: the values of `tensor`, where they are."""
    values = tensor.to(copy.dtype, copy=True)
    return nn.Parameter(values, copy.requires_grad) if isinstance(copy, nn.Parameter) else values


def _put_extra(read: Survey, adapter: Adapter, extra: _Extra, kept: ExtraTensors) -> None:
    """Give the copies of tensors the adapter's values, and record it."""
    kept.bias, kept.biases, kept.modules = adapter.settings.bias, extra.biases, extra.modules
    made: dict[int, Tensor] = {}
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            slot, copy = read.slots[name], read.slots[name].tensor
            if copy.is_meta:
                slot.put(made.setdefault(id(copy), _with_values(copy, tensor)))
            else:
                copy.copy_(tensor)
        for name, rows in adapter.rows.items():
            kept.rows |= {tied: rows.indices for tied in extra.tied[name] if tied in kept.originals}
            tensor = read.slots[name].tensor
            tensor[list(rows.indices)] = rows.values.to(tensor)
