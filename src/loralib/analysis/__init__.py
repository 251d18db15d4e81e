"""What an adapter learned: analyses of its updates, beside the base's weights where those are needed."""

from .intruders import Intruder, intruder_dimensions, reduce_intruder_dimensions

__all__ = ["Intruder", "intruder_dimensions", "reduce_intruder_dimensions"]
