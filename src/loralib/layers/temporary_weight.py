"""Temporarily replace a module's Parameter, and later restore the same object.

Merging never subtracts. Because the original Parameter object waits, untouched, no bit of it can change, in any dtype,
after any number of cycles; a tied weight stays tied. Whatever acts on a module from outside while a replacement is in place
(saving, loading, moving, assigning) acts on the original, and the replacement is then computed again.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


def original(module: nn.Module, name: str) -> Tensor:
    """The tensor `name` of `module` itself; where it is replaced temporarily, the one that will be restored."""
    tensor: Tensor = module.original(name) if isinstance(module, TemporaryWeights) else getattr(module, name)
    return tensor


class TemporaryWeights(_Module):
    """A module whose Parameters can be replaced temporarily. Mixed in front of a module class, by classes that know how the
    replacements are computed, and say so in `originals`."""

    own_attributes: ClassVar[tuple[str, ...]] = ("_replaced",)

    _replaced: Mapping[str, tuple[nn.Parameter, bool]] = MappingProxyType({})

    def original(self, name: str) -> nn.Parameter:
        """The module's own Parameter `name`, whether or not it is replaced."""
        W: nn.Parameter = self._replaced[name][0] if name in self._replaced else getattr(self, name)
        return W

    def replace_temporarily(self, name: str, tensor: Tensor) -> None:
        """Put `tensor` in the place of the Parameter `name`, or of its present replacement."""
        present: nn.Parameter = getattr(self, name)
        if name not in self._replaced:  # past nn.Module.__setattr__, which would register it
            self.__dict__["_replaced"] = dict(self._replaced) | {name: (present, present.requires_grad)}
        self._parameters[name] = nn.Parameter(tensor, requires_grad=present.requires_grad)

    def restore(self, name: str) -> None:
        """Put the original Parameter `name` back."""
        if name not in self._replaced:
            return
        W, flag = self._replaced[name]
        present: nn.Parameter = getattr(self, name)
        if present.requires_grad != flag:  # set meanwhile; else the original's own flag stands
            W.requires_grad_(present.requires_grad)
        self._parameters[name] = W
        self.keep_replacement(name)

    def keep_replacement(self, name: str) -> None:
        """Make the present Parameter `name` the module's own; its original is forgotten."""
        self.__dict__["_replaced"] = {key: kept for key, kept in self._replaced.items() if key != name}
        if not self._replaced:
            del self.__dict__["_replaced"]

    def originals(self) -> AbstractContextManager[None]:
        """Context manager: all originals are in their places inside the block; replacements are computed again after it."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        present = {name: self._parameters[name] for name in self._replaced}
        self._parameters.update({name: W for name, (W, _) in self._replaced.items()})
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
        if name in self._replaced and name in self._parameters:  # a replica of DataParallel has no Parameters
            with self.originals():
                super().__setattr__(name, value)
        else:
            super().__setattr__(name, value)
