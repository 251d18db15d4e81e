"""Setting a weight aside: another Parameter stands in for it for a while, and the very object comes back afterwards.

Merging never subtracts. Because the original Parameter object waits, untouched, no bit of it can change, in any dtype,
after any number of cycles; a tied weight stays tied. Whatever looks at a module from outside while a stand-in is in place
(saving, loading, moving, assigning) acts on the original, and the stand-in is then made anew.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


class SetAside(_Module):
    """A module whose Parameters can be stood in for. Mixed in front of a module class, by classes that know how the stand-ins
    are made and say so in `originals`."""

    _aside: Mapping[str, tuple[nn.Parameter, bool]] = MappingProxyType({})

    def original(self, name: str) -> nn.Parameter:
        """The module's own Parameter `name`, whether or not another stands in for it."""
        W: nn.Parameter = self._aside[name][0] if name in self._aside else getattr(self, name)
        return W

    def stand_in(self, name: str, tensor: Tensor) -> None:
        """Let `tensor` take the place of the Parameter `name`, or of what stands in for it already."""
        present: nn.Parameter = getattr(self, name)
        if name not in self._aside:  # past nn.Module.__setattr__, which would register it
            self.__dict__["_aside"] = dict(self._aside) | {name: (present, present.requires_grad)}
        self._parameters[name] = nn.Parameter(tensor, requires_grad=present.requires_grad)

    def restore(self, name: str) -> None:
        """Put the original Parameter `name` back."""
        if name not in self._aside:
            return
        W, flag = self._aside[name]
        present: nn.Parameter = getattr(self, name)
        if present.requires_grad != flag:  # set meanwhile; else the original's own flag stands
            W.requires_grad_(present.requires_grad)
        self._parameters[name] = W
        self.forget(name)

    def forget(self, name: str) -> None:
        """Let what stands in for the Parameter `name` be the module's own."""
        self.__dict__["_aside"] = {key: kept for key, kept in self._aside.items() if key != name}
        if not self._aside:
            del self.__dict__["_aside"]

    def originals(self) -> AbstractContextManager[None]:
        """All originals are in their places inside the block; the stand-ins are made anew after it."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        present = {name: self._parameters[name] for name in self._aside}
        self._parameters.update({name: W for name, (W, _) in self._aside.items()})
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
        if name in self._aside and name in self._parameters:  # a replica of DataParallel has no Parameters
            with self.originals():
                super().__setattr__(name, value)
        else:
            super().__setattr__(name, value)
