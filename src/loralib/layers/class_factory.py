"""Builds and caches `LoRA<Base>` classes: a LoRA mixin in front of a module's own class.

`lora_class(LinearLoRA, VendorLinear)` is a class `LoRAVendorLinear(LinearLoRA, VendorLinear)`, the same one on every call, and
its instances can be pickled although no module holds it by name. Where a class is written for a mixin and a base, such as
`lora.Linear`, that is the one.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

if TYPE_CHECKING:
    ModuleMixin = nn.Module  # what a mixin may take for granted of the class that it goes in front of
else:
    ModuleMixin = object

_CLASSES: dict[tuple[type, type[nn.Module]], type["LoRAClass"]] = {}


class LoRAClass:
    """A mixin that goes in front of the classes of modules. A class that names its `base_class` is the one for its first base
    and that class."""

    base_class: ClassVar[type[nn.Module]]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "base_class" in vars(cls):
            _CLASSES[vars(cls).get("_mixin", cls.__bases__[0]), cls.base_class] = cls

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        mixin = vars(type(self)).get("_mixin")
        return (_new, (mixin, self.base_class), *reduced[2:]) if mixin else reduced


def lora_class(mixin: type, base: type[nn.Module]) -> type[Any]:
    """`mixin` in front of `base`; the same class on every call."""
    if (mixin, base) not in _CLASSES:  # a new class enters itself
        own = {"__doc__": base.__doc__, "_mixin": mixin, "base_class": base}
        made = type(f"LoRA{base.__name__}", (mixin, base), own)
        if not can_become(base, made):
            _with_layout_of(base, mixin, made.__mro__[1:], own)
    return _CLASSES[mixin, base]


def can_become(base: type[nn.Module], made: type) -> bool:
    """Whether Python lets an instance of `base` become one of `made`."""
    instance = object.__new__(base)
    try:
        instance.__class__ = made
    except TypeError:
        return False
    return True


def _with_layout_of(base: type[nn.Module], mixin: type, order: tuple[type, ...], own: dict[str, Any]) -> None:
    """Make the class with `base` as its first base, whose layout Python then takes over, and with the methods in `order`. A
    class that has abc.ABC or typing.Generic in front of its other bases is laid out otherwise than the mixins."""
    kind: Any = type(base)

    def mro(cls: Any) -> Any:
        return [cls, *order] if cls.__bases__ == (base, mixin) else kind.mro(cls)  # FSDP derives a class from ours

    type(kind.__name__, (kind,), {"mro": mro})(f"LoRA{base.__name__}", (base, mixin), own)


def _new(mixin: type, base: type[nn.Module]) -> Any:
    return object.__new__(lora_class(mixin, base))
