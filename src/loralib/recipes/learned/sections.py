"""A report as the sections of its page: what is shown, and in which order."""

from . import tables
from .measured import Measured
from .page import Section
from .run_section import run_section
from .similarity_section import similarity_section
from .spectra_sections import spectra_section, where_section

MOST_HEATMAPS = 400  # of layers, on a page

PAIRS = "Means over the layers that both adapt; chance is that of random directions."
OVERLAP = (
    "Whether two updates interfere when they are combined. Cosine: ⟨ΔW, ΔW'⟩ / (‖ΔW‖·‖ΔW'‖); where it is 0, the sum loses "
    "nothing. Shared inputs and outputs: φ over all right and all left singular vectors."
)
AMPLIFICATION = (
    "The paper's Table 7, a row for each layer. ‖UᵀWV‖: how large W is in the first r directions of ΔW, in W's own, and in "
    "random ones. Factor: ‖ΔW‖ / ‖UᵀWV‖ of ΔW, by how much the update amplifies what W has there. Last, as in appendix "
    "H: how much of ‖ΔW‖² lies in W's strongest directions, the mean of outputs and inputs."
)
INTRUDERS = (
    "Of the ten leading directions of W + ΔW, those that are far from all of W's own (Shuttleworth et al. 2024): LoRA brings "
    "them with it, and full fine-tuning hardly does."
)


def sections(measured: Measured) -> list[Section]:
    """All sections that have something to show."""
    made = [Section("Adapters", tables=[tables.adapters(measured).without_empty()])]
    if len(measured.pairs) > 1:
        made.append(Section("All pairs", PAIRS, tables=[tables.pairs(measured)]))
    most = MOST_HEATMAPS // max(1, len(measured.pairs))
    made += [similarity_section(measured, pair, most) for pair in measured.pairs]
    made += [Section("Overlap of updates", OVERLAP, tables=[tables.overlap(measured)])] * bool(measured.pairs)
    made += [where_section(measured), spectra_section(measured)]
    for title, lead, table in (
        ("Amplification", AMPLIFICATION, tables.amplification(measured)),
        ("Intruder dimensions", INTRUDERS, tables.intruders(measured)),
    ):
        made += [Section(title, lead, tables=[table])] * bool(table.rows)
    return [*made, *filter(None, (run_section(alone.subject) for alone in measured.alone))]
