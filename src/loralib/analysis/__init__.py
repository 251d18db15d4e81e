"""What an adapter learned: analyses of its updates and, where those are needed, of the base's weights."""

from .intruders import Intruder, intruder_dimensions, reduce_intruder_dimensions

__all__ = ["Intruder", "intruder_dimensions", "reduce_intruder_dimensions"]
