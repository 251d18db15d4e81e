"""The weights of a model, in memory or in files, and which of them an adapter changes."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapter
from ..adapters.convolution_updates import LegacyTransposedUpdate
from ..adapters.expert_forms import apart, in_form_of
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.updates import LoRAUpdate
from ..arguments import MODEL, PATH, wrong
from ..errors import FormatError, LayerError
from ..surgery.survey import Survey
from . import layouts
from .checkpoint import Checkpoint, open_checkpoint
from .layouts import Located
from .names import Renaming, Tie, renaming, tie_of

Source = nn.Module | str | os.PathLike[str]


@dataclass(frozen=True)
class Weights:
    """The tensors of a model.

    what: the model, in messages. shapes: of all tensors by name, tied ones once. tensor: gives one. layers: the weights that
    updates can change by the names of their layers, a tied tensor under each of its layers. checkpoint: the files they are in.
    """

    what: str
    shapes: layouts.Shapes
    tensor: Callable[[str], Tensor]
    layers: Mapping[str, Located]
    checkpoint: Checkpoint | None = None


class Pair(NamedTuple):
    """A layer's update, and the weight that it changes in the canonical layout (out, in / groups, *kernel)."""

    layer: str
    update: LoRAUpdate
    W: Tensor


def weights_of(source: Source) -> Weights:
    """The weights of a model, or of a folder or file of weights. `LayerError` for a model that carries updates, `FormatError`
    for files that hold none, or quantized ones."""
    if isinstance(source, nn.Module):
        return _of_model(Survey(source))
    if not isinstance(source, str | os.PathLike):
        raise wrong("base", f"{MODEL}, or {PATH}", source)
    checkpoint = open_checkpoint(Path(source))
    if checkpoint.is_quantized:
        raise FormatError(f"{checkpoint.path} is quantized; give the weights that it was made from.")
    shapes = {name: place.shape for name, place in checkpoint.tensors.items()}
    layers = dict(layouts.by_names(shapes, checkpoint.config))
    if (tie := tie_of(checkpoint)) and tie.head not in shapes:
        layers[tie.head.removesuffix(".weight")] = Located(tie.embedding)
    return Weights(str(checkpoint.path), shapes, checkpoint.tensor, layers, checkpoint)


def _of_model(read: Survey) -> Weights:
    if read.adapted:
        raise LayerError(f"{next(iter(read.adapted))!r} carries an update; merge it for good or eject it, and compare then.")
    named = read.tensors
    first = {id(tensor): name for name, tensor in reversed(named.items())}
    tensors = {name: named[name].detach() for name in named if first[id(named[name])] == name}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    known = {layer: found for layer, found in layouts.by_modules(read) if found.tensor in named}
    layers = {layer: replace(found, tensor=first[id(named[found.tensor])]) for layer, found in known.items()}
    return Weights(type(read.model).__name__, shapes, tensors.__getitem__, layers)


def locate(adapter: Adapter, base: Source | Weights) -> dict[str, Located]:
    """Where the weights of the adapter's layers are in `base`, by the adapter's names.

    Raises:
        LayerError: When a model does not have one of the layers.
        FormatError: When files do not have one, or hold it with another shape; all are listed.
    """
    weights = base if isinstance(base, Weights) else weights_of(base)
    if weights.checkpoint is not None:
        tie = tie_of(weights.checkpoint)
        located, _ = locate_in_files(adapter, weights.checkpoint, tie)
        if tie is None or tie.head in weights.shapes:
            return located
        return {n: replace(w, tensor=tie.embedding) if w.tensor == tie.head else w for n, w in located.items()}
    if missing := [name for name in adapter.layers if name not in weights.layers]:
        raise LayerError(f"{weights.what} has no layer {missing[0]!r} with a weight that the adapter could change.")
    located = {name: weights.layers[name] for name in adapter.layers}
    as_it_is = {name for name, update in adapter.layers.items() if isinstance(update, LegacyTransposedUpdate)}
    return {name: replace(found, layout=layouts.AS_IT_IS) if name in as_it_is else found for name, found in located.items()}


def locate_in_files(adapter: Adapter, checkpoint: Checkpoint, tie: Tie | None) -> tuple[dict[str, Located], Renaming]:
    """`locate` for files, and the change of names that it took. A tied layer is at its own name, even if files hold only the
    other."""
    shapes = {name: place.shape for name, place in checkpoint.tensors.items()}
    if tie is not None:
        shapes.setdefault(tie.head, shapes[tie.embedding])
    rename = renaming(checkpoint, adapter.layers, shapes)
    tensors = {name: layouts.tensor_of(rename(name), update, shapes) for name, update in adapter.layers.items()}
    located, problems = layouts.by_updates(adapter.layers, tensors, shapes, adapter.settings.fan_in_fan_out, checkpoint.config)
    if problems:
        listed = [f"{name}: {problem}" for name, problem in problems.items()]
        more = f"; and {len(listed) - 8} more" if len(listed) > 8 else ""
        raise FormatError(f"The adapter does not fit {checkpoint.path}: {'; '.join(listed[:8])}{more}. Nothing was written.")
    return located, rename


def pairs(adapter: Adapter, base: Source) -> Iterator[Pair]:
    """The adapter's updates with the weights of `base` that they change, one after the other.

    Raises:
        LayerError: When a model does not have one of the layers, or an update does not fit its weight.
        FormatError: When files do not.
    """
    weights = weights_of(base)
    held = adapter if weights.checkpoint is None else in_form_of(adapter, weights.shapes)
    located = locate(held, weights)

    def canonical(layer: str) -> Tensor:
        return located[layer].layout.to_canonical(weights.tensor(located[layer].tensor).detach())

    for name, update in adapter.layers.items():
        if name in located:
            W = canonical(name)
        elif isinstance(update, ExpertsUpdate):  # which files have apart
            W = torch.cat([canonical(part) for part in apart(name, update)]).unflatten(0, (update.experts, -1))
        else:
            raise LayerError(f"{weights.what} has the experts of {name!r} together; give stack_experts(adapter).")
        if tuple(W.shape) != update.canonical_shape:
            raise LayerError(f"{name!r} has a weight of {tuple(W.shape)}, which the adapter's update does not fit.")
        yield Pair(name, update, W)
