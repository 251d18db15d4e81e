"""Whole weights that an adapter repeats of a model that ties them.

PEFT stores the embedding with an update of `embed_tokens` or `lm_head`, whether or not it was changed. Where the model ties the
two, a tensor for one of them alone could not be put in its place; the model's own need not be.
"""

from dataclasses import replace

from torch import Tensor

from .. import patterns, tensors
from ..adapters.adapter import Adapter
from ..tensors import same_bits
from .survey import Survey


def without_copies(read: Survey, adapter: Adapter) -> Adapter:
    """`adapter` without the tensors that a model ties to others, and has itself."""
    own = {name for name in _tied_alone(read, adapter) if is_same(adapter.tensors[name], read.tensors[name])}
    kept = {name: tensor for name, tensor in adapter.tensors.items() if name not in own}
    return replace(adapter, config=adapter.settings, tensors=kept) if own else adapter


def problems(read: Survey, adapter: Adapter) -> dict[str, str]:
    """Those of the tensors that the model does not have itself, or that cannot be compared, with what is wrong."""
    found = {}
    for name, other in _tied_alone(read, adapter).items():
        W = read.tensors[name]
        if tensors.kind(W) != "plain":
            found[name] = f"tied to {other} in the model, whose values cannot be compared; load them first"
        elif not is_same(adapter.tensors[name], W):
            found[name] = (
                f"tied to {other} in the model, and the adapter brings another one than the model has; load the base model "
                "that it was trained on, or untie the two"
            )
    return found


def is_same(stored: Tensor, W: Tensor) -> bool:
    """Whether `stored` is the weight `W`: to the last bit in the dtype of one of the two."""
    if stored.shape != W.shape or {tensors.kind(stored), tensors.kind(W)} != {"plain"}:
        return False
    return same_bits(W.to(stored.dtype), stored) or same_bits(stored.to(W.dtype), W.detach())


def _tied_alone(read: Survey, adapter: Adapter) -> dict[str, str]:
    """The tensors that nothing asked to save and the model ties to one that the adapter does not hold, with its name."""
    if not adapter.tensors:
        return {}
    outside = {id(tensor): name for name, tensor in read.tensors.items() if name not in adapter.tensors}
    mine = [name for name in adapter.tensors if name in read.tensors and not was_asked_for(adapter, name)]
    tied = {name: other for name in mine if (other := outside.get(id(read.tensors[name])))}
    return {name: other for name, other in tied.items() if read.slots[name] != read.slots[other]}


def was_asked_for(adapter: Adapter, name: str) -> bool:
    """Whether `modules_to_save` names the module of the tensor `name`."""
    module = name.rpartition(".")[0]
    return any(patterns.ends_with(module, entry) for entry in adapter.settings.modules_to_save)
