"""Classes made to measure: a treatment in front of whatever class a module has.

`made_to_measure(LinearLoRA, VendorLinear)` is a class `LoRAVendorLinear(LinearLoRA, VendorLinear)`, the same one on every
call, and its instances can be pickled although no module holds it by name. Where a treatment and a class have a class
written for them, such as `lora.Linear`, that is the one.
"""

from typing import Any, ClassVar

from torch import nn

_MADE: dict[tuple[type, type[nn.Module]], type["MadeToMeasure"]] = {}


class MadeToMeasure:
    """A treatment that is mixed in front of the classes of modules. A class that names its `base_class` is the one that its
    first base and that class make together."""

    base_class: ClassVar[type[nn.Module]]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "base_class" in vars(cls):
            _MADE[cls.__bases__[0], cls.base_class] = cls

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        treatment = vars(type(self)).get("_treatment")
        return (_new, (treatment, self.base_class), *reduced[2:]) if treatment else reduced


def made_to_measure(treatment: type, base: type[nn.Module]) -> type[Any]:
    """`treatment` in front of `base`; the same class on every call."""
    if (treatment, base) not in _MADE:  # the new class enters itself
        type(f"LoRA{base.__name__}", (treatment, base), {"__doc__": base.__doc__, "_treatment": treatment, "base_class": base})
    return _MADE[treatment, base]


def _new(treatment: type, base: type[nn.Module]) -> Any:
    return object.__new__(made_to_measure(treatment, base))
