"""Temporarily replace a module's Parameter, and later restore the same object.

Merging never subtracts. Because the original Parameter object waits, untouched, no bit of it can change, in any dtype,
after any number of cycles; a tied weight stays tied. Whatever acts on a module from outside while a replacement is in place
(saving, loading, moving) acts on the original, and the replacement is then computed again.

What a Parameter means that is assigned meanwhile depends on where it comes from (see `taken_for`): a tie is made again with the
original, a new weight is a new original, and a weight computed from the replacement is final.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import LayerError
from ..tensors import same_bits, same_memory, version
from .class_factory import ModuleMixin
from .holders import is_held
from .state_dicts import Baked, MergedStateDictWarning, Quiet

_STANDS_FOR: WeakIdKeyDictionary = WeakIdKeyDictionary()  # replacements that are in use, and the originals that wait for them


class Replaced(NamedTuple):
    """A Parameter that waits, its flag when it was replaced, and what is in its place, with its version and shape then."""

    original: nn.Parameter
    requires_grad: bool
    replacement: nn.Parameter
    version: int
    shape: torch.Size


def original(module: nn.Module, name: str) -> Tensor:
    """The tensor `name` of `module` itself; where it is replaced temporarily, the one that will be restored."""
    tensor: Tensor = module.original(name) if isinstance(module, TemporaryWeights) else getattr(module, name)
    return tensor


class TemporaryWeights(ModuleMixin):
    """A module whose Parameters can be replaced temporarily. Mixed in front of a module class, by classes that know how the
    replacements are computed, and say so in `originals`."""

    own_attributes: ClassVar[tuple[str, ...]] = ("_replaced",)

    _replaced: Mapping[str, Replaced] = MappingProxyType({})

    def original(self, name: str) -> nn.Parameter:
        """The module's own Parameter, whether or not it is replaced.

        Args:
            name: The Parameter's name.

        Returns:
            The original.
        """
        W: nn.Parameter = self._replaced[name].original if name in self._replaced else getattr(self, name)
        return W

    def holds_replacement(self, name: str) -> bool:
        """Whether what is at a name is what `replace_temporarily` put there. It is not where a functional call gives the module
        other tensors, or a hook brings a weight that was offloaded: those are what the module's state dict has, originals.

        Args:
            name: The Parameter's name.

        Returns:
            Whether it is the replacement.
        """
        return same_memory(self._parameters[name], self._replaced[name].replacement)

    def waiting(self) -> dict[str, nn.Parameter]:
        """The originals in whose places our replacements are at present.

        Returns:
            Them by name.
        """
        return {name: entry.original for name, entry in self._replaced.items() if self.holds_replacement(name)}

    def replace_temporarily(self, name: str, tensor: Tensor) -> None:
        """Put a tensor in the place of a Parameter, or of its present replacement.

        Args:
            name: The Parameter's name.
            tensor: The replacement; a Parameter is taken as it is.
        """
        present: nn.Parameter = getattr(self, name)
        new = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=present.requires_grad)
        waiting = self._replaced.get(name, Replaced(present, present.requires_grad, new, 0, new.shape))
        entry = waiting._replace(replacement=new, version=version(new), shape=new.shape)
        self.__dict__["_replaced"] = dict(self._replaced) | {name: entry}  # past __setattr__, which would register it
        self._parameters[name] = new
        _STANDS_FOR[new] = entry.original

    def restore(self, name: str) -> None:
        """Put an original Parameter back.

        Args:
            name: The Parameter's name.

        Raises:
            LayerError: When the replacement was given another shape meanwhile.
        """
        if name not in self._replaced:
            return
        W, flag, replacement, before, shape = self._replaced[name]
        present: nn.Parameter = getattr(self, name)
        if present.shape != shape:
            raise LayerError(
                f"{type(self).__name__} was resized while it was merged: its {name} has shape {tuple(present.shape)}, the "
                f"original {tuple(W.shape)}; resize before merging, or merge(model, keep=False) first. Nothing was changed."
            )
        if version(replacement) > before:
            warnings.warn(
                f"The merged {name} of a {type(self).__name__} was changed in place, which is lost as the original returns; "
                "change it in an unmerged model, or after merge(model, keep=False).",
                stacklevel=2,
            )
        if present.requires_grad != flag:  # set meanwhile; else the original's own flag stands
            W.requires_grad_(present.requires_grad)
        self._parameters[name] = W
        self.keep_replacement(name)

    def keep_replacement(self, name: str) -> None:
        """Make the present Parameter the module's own; its original is forgotten.

        Args:
            name: The Parameter's name.
        """
        self.__dict__["_replaced"] = {key: kept for key, kept in self._replaced.items() if key != name}
        if not self._replaced:
            del self.__dict__["_replaced"]

    def originals(self) -> AbstractContextManager[None]:
        """Context manager: all originals are in their places inside the block; replacements are computed again after it."""
        raise NotImplementedError

    def make_final(self, name: str) -> None:
        """Let a Parameter be the module's own from now on, with nothing more to add to it.

        Args:
            name: The Parameter's name.
        """
        raise NotImplementedError

    def taken_for(self, name: str, value: nn.Parameter) -> nn.Parameter | None:
        """What a Parameter stands for that is assigned to the name of one that is replaced at present.

        A merged weight, of another layer or this one, stands for that layer's original: what was tied stays tied. A Parameter
        that another module holds, or that equals the original bit for bit, is itself a new original.

        Args:
            name: The name that is assigned.
            value: The Parameter.

        Returns:
            The original; None for a Parameter that was computed from the replacement (a batch norm folded into it, say).
        """
        if value in _STANDS_FOR:
            original: nn.Parameter = _STANDS_FOR[value]
            return original
        is_base = same_bits(value.data, self._replaced[name].original.data) or is_held(value)
        return value if is_base else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copied or pickled state; how often a tensor was changed is counted from the start in a copy."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._replaced:
            counted = {name: entry._replace(version=version(entry.replacement)) for name, entry in self._replaced.items()}
            self.__dict__["_replaced"] = counted
            _STANDS_FOR.update({entry.replacement: entry.original for entry in counted.values()})

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not self._replaced or isinstance(destination, Baked):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        if not isinstance(destination, Quiet):
            warnings.warn(MergedStateDictWarning(), stacklevel=2)
        present = {name: self._parameters[name] for name in self._replaced}
        self._parameters.update({name: entry.original for name, entry in self._replaced.items()})
        try:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        finally:
            self._parameters.update(present)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self.originals():
            super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with self.originals():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._replaced or name not in self._parameters:  # a replica of DataParallel has no Parameters
            super().__setattr__(name, _STANDS_FOR.get(value, value) if isinstance(value, nn.Parameter) else value)
            return
        new = self.taken_for(name, value) if isinstance(value, nn.Parameter) else value
        if new is None:
            self.make_final(name)
            super().__setattr__(name, value)
        else:
            with self.originals():
                super().__setattr__(name, new)
