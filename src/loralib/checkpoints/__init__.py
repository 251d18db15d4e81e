"""The weights of whole models in files: read and changed there, tensor by tensor, without a model."""

from .intruders import Intruder, intruder_dimensions, reduce_intruder_dimensions
from .merge import MergeReport, merge_checkpoint
from .subtraction import difference

__all__ = [
    "Intruder",
    "MergeReport",
    "difference",
    "intruder_dimensions",
    "merge_checkpoint",
    "reduce_intruder_dimensions",
]
