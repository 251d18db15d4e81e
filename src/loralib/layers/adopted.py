"""A module that was given another class in place: it keeps everything that it had, and can be given back as it was.

A `forward` of the instance (accelerate, Liger) is carried, and called as the base's own; hooks, mode and flags stay. Where
torch would read its weight directly, it must go on being called.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MethodType
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .class_factory import LoRAClass, ModuleMixin


class Adopted(LoRAClass, ModuleMixin):
    """A module whose class is one of ours in front of its own. Each mixin lists in `own_attributes` what it adds to it."""

    own_attributes: ClassVar[tuple[str, ...]] = ("_carried_forward", "_stays_called")

    _carried_forward: Callable[..., Any] | None = None

    def carry(self, forward: Callable[..., Any] | None) -> None:
        """Call `forward`, which the instance had, wherever the base's own is meant.

        Args:
            forward: The instance's own forward, or None.
        """
        if forward is not None:
            vars(self)["_carried_forward"] = forward

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer's output, with the weight it holds now.

        Args:
            *args: Those of the base layer.
            **kwargs: Those of the base layer.

        Returns:
            What the base layer returns.
        """
        carried = self._carried_forward
        if carried is None:
            return super().forward(*args, **kwargs)
        if isinstance(carried, MethodType) and carried.__self__ is self:  # which may ask the layer for the forward of its class
            return self._by_twin(carried.__func__, vars(self), args, kwargs)
        return carried(*args, **kwargs)

    def forward_with(self, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The base layer's output with another weight in the place of its own.

        Args:
            weight: That weight.
            *args: Those of the base layer.
            **kwargs: Those of the base layer.

        Returns:
            What the base layer returns.
        """
        own = {name: value for name, value in vars(self).items() if name != "weight"}
        own["_parameters"] = self._parameters | {"weight": weight}
        return self._by_twin(type(self).base_class.forward, own, args, kwargs)

    def _by_twin(self, forward: Callable[..., Any], own: Mapping[str, Any], args: Any, kwargs: Any) -> Any:
        """What `forward` gives for a twin of the base's class with the attributes `own`. The layer itself, which other threads
        may be using, is not touched while it computes."""
        twin = object.__new__(type(self).base_class)
        own = {name: value for name, value in own.items() if name != "_carried_forward"}
        vars(twin).update(own)
        result = forward(twin, *args, **kwargs)
        vars(self).update({name: value for name, value in vars(twin).items() if own.get(name, twin) is not value})
        return result

    def stay_called(self) -> None:
        """Keep `nn.TransformerEncoderLayer` from reading the weight in its fast path in evaluation mode, which would miss
        the update: with a hook on any of its layers it calls them."""
        if "_stays_called" not in vars(self):
            vars(self)["_stays_called"] = self.register_forward_pre_hook(_do_nothing)

    def give_back(self) -> None:
        """Make the module what it was: its own class, without any attribute that ours added."""
        carried = self._carried_forward
        hook: RemovableHandle | None = vars(self).get("_stays_called")
        if hook is not None:
            hook.remove()
        kind: Any = type(self)
        for name in own_attributes(kind):
            for held in (vars(self), self._parameters, self._modules):
                held.pop(name, None)
        self.__class__ = self.base_class  # type: ignore[assignment]
        if carried is not None:
            vars(self)["forward"] = carried

    def __setattr__(self, name: str, value: Any) -> None:
        carries = name == "forward" and self._carried_forward is not None
        if carries and not _wraps(value, type(self).forward):  # hooks come and go around the base's forward
            self._carried_forward = value
        else:
            super().__setattr__(name, value)


@cache
def own_attributes(cls: type) -> tuple[str, ...]:
    """The names of all attributes that the mixins of `cls` add to an instance."""
    return tuple(dict.fromkeys(name for base in cls.__mro__ for name in vars(base).get("own_attributes", ())))


def _wraps(value: Any, forward: Callable[..., Any]) -> bool:
    """Whether `value` is `forward`, bound or not, or says that it wraps that (functools.wraps)."""
    while callable(value):
        if getattr(value, "__func__", value) is forward:
            return True
        value = getattr(value, "__wrapped__", None)
    return False


def _do_nothing(module: nn.Module, args: Any) -> None:
    """A hook whose presence is its purpose."""
