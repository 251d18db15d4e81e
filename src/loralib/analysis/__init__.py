"""What an adapter learned: analyses of its updates and, where those are needed, of the base's weights."""

from ..choices import Directions
from .amplification import Amplification, amplification
from .intruders import Intruder, intruder_dimensions, reduce_intruder_dimensions
from .overlap import Overlap, overlap, total_cosine
from .places import norms_by_place
from .spectra import Spectrum, spectra
from .subspaces import SubspaceSimilarity, subspace_similarity

__all__ = [
    "Amplification",
    "Directions",
    "Intruder",
    "Overlap",
    "Spectrum",
    "SubspaceSimilarity",
    "amplification",
    "intruder_dimensions",
    "norms_by_place",
    "overlap",
    "reduce_intruder_dimensions",
    "spectra",
    "subspace_similarity",
    "total_cosine",
]
