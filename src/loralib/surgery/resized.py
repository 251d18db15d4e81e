"""Models whose tensors were given other shapes after LoRA was put on them: refused, since what was kept no longer fits.

Hugging Face's `resize_token_embeddings` gives an embedding a longer weight, and *replaces* an output layer by a plain one, so
that its update is gone without a trace. Which layers were adapted, and how large their weights were, is therefore recorded on
the model (see `saved_modules`), and a model whose output layer is adapted looks at it before it computes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LayerError
from ..layers import RESIZED, AdaptedLayer
from .module_tree import join, walk
from .saved_modules import ExtraTensors, record_of
from .survey import Survey
from .wrappers import is_flattened, unwrap


def output_embedding(model: nn.Module) -> nn.Module | None:
    """The layer that maps hidden states to the vocabulary, where the model follows Hugging Face's protocol for it."""
    protocol: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    output = protocol() if protocol else None
    return None if output is None else unwrap(output)


def remember_sizes(model: nn.Module, kept: ExtraTensors, adapted: Mapping[str, nn.Module]) -> None:
    """Record the layers that were adapted; a model whose output layer is among them checks that before it computes."""
    kept.sizes |= {name: tuple(layer.weight.shape) for name, layer in adapted.items() if isinstance(layer.weight, Tensor)}
    if kept.head_watch is None and isinstance(output_embedding(model), AdaptedLayer):
        kept.head_watch = model.register_forward_pre_hook(_check_head)


def _check_head(model: nn.Module, args: Any) -> None:
    """`LayerError` when the output layer of `model`, which was adapted, was replaced by one of another size."""
    if torch.compiler.is_compiling():
        return
    head, kept = output_embedding(model), record_of(model)
    if kept is None or head is None or isinstance(head, AdaptedLayer) or not isinstance(head.weight, Tensor):
        return
    name = next((name for name, module in walk(model).places if module is head), "")
    if problem := _size_problem(head, kept.sizes.get(name)):
        raise LayerError(f"{name!r} of {type(model).__name__} {problem}.")


def check_sizes(read: Survey, verb: str) -> None:
    """`LayerError` when a layer that was adapted, or a tensor trained in full, has another size than it had then."""
    for prefix, _, kept in read.records:
        for name, size in kept.sizes.items():
            layer = read.sites.get(join(prefix, name))
            if layer is not None and not isinstance(layer, AdaptedLayer) and (problem := _size_problem(layer, size)):
                _refuse(read, join(prefix, name), problem, verb)
        for name, original in {} if any(is_flattened(m) for _, m in read.wrappers) else kept.originals.items():
            slot = read.slots.get(join(prefix, name))
            if slot is not None and slot.tensor.numel() and slot.tensor.shape != original.shape:
                problem = f"has shape {tuple(slot.tensor.shape)}, and had {tuple(original.shape)}: {RESIZED}"
                _refuse(read, join(prefix, name), problem, verb)


def _size_problem(layer: nn.Module, size: tuple[int, ...] | None) -> str | None:
    """What is wrong with a plain layer in the place of one that was adapted, when its weight had this size, or None."""
    W = getattr(layer, "weight", None)
    if size is None or not isinstance(W, Tensor) or tuple(W.shape) == size or not W.numel():
        return None
    return f"was adapted, and is a plain layer now, with a weight of shape {tuple(W.shape)} for {size}: {RESIZED}"


def _refuse(read: Survey, name: str, problem: str, verb: str) -> None:
    raise LayerError(f"{type(read.model).__name__} cannot be {verb}: {name!r} {problem}. Nothing was changed.")
