"""The sections of the page on each adapter by itself: where its update is large, and how many directions it has."""

import statistics
from collections.abc import Sequence

from ...analysis import Spectrum
from ...analysis.places import depth_of
from . import tables
from .drawings import Line, colour_of, number, plot
from .measured import Alone, Measured
from .page import Gallery, Picture, Section

WHERE = (
    "‖ΔW‖ (Frobenius) by block, for each kind of layer. A large update is one that changes more of what the layer computes; it "
    "is not by itself a more important one."
)
SPECTRA = (
    "The singular values of ΔW, largest first: thin lines are layers, the thick one is their median. 90 % in and 99 % in: how "
    "many of them carry that share of ‖ΔW‖². Stable rank: ‖ΔW‖² / σ₁². Effective rank: exp of the entropy of the shares of "
    "the singular values (Roy and Vetterli 2007)."
)


def where_section(measured: Measured) -> Section:
    """‖ΔW‖ over the blocks, a plot for each role and a colour for each adapter."""
    legend = [(colour_of(place), alone.subject.name) for place, alone in enumerate(measured.alone)]
    pictures = []
    for role, lines in norms(measured).items():
        values = [y for line in lines for _, y in line.points]
        caption = f"{role}: ‖ΔW‖ from {number(min(values))} to {number(max(values))}."
        drawing = plot(lines, "block", "‖ΔW‖", f"Plot of the norm of the update by block, {caption}", zero=True)
        pictures.append(Picture(drawing, caption, legend if len(legend) > 1 else ()))
    return Section("Where the update is large", WHERE, [Gallery("", pictures)] if pictures else [])


def norms(measured: Measured) -> dict[str, list[Line]]:
    """By role, a line for each adapter: ‖ΔW‖ at each block; layers without a number are at 0."""
    found: dict[str, list[Line]] = {}
    for place, alone in enumerate(measured.alone):
        finite = [name for name, spectrum in alone.spectra.items() if spectrum.values]
        for role, names in measured.by_role(finite).items():
            points = [(float(depth_of(name) or 0), alone.spectra[name].norm) for name in names]
            found.setdefault(role, []).append(Line(alone.subject.name, points, colour_of(place)))
    return found


def spectra_section(measured: Measured) -> Section:
    """The spectra of all layers, a plot for each adapter and role, and their table."""
    pictures = [
        _spectra(alone, role, [alone.spectra[name] for name in names], colour_of(place))
        for place, alone in enumerate(measured.alone)
        for role, names in measured.by_role(_nonzero(alone)).items()
    ]
    return Section("Spectra", SPECTRA, [Gallery("", pictures)] if pictures else [], [tables.spectra(measured)])


def _nonzero(alone: Alone) -> list[str]:
    return [name for name, spectrum in alone.spectra.items() if any(spectrum.values or ())]


def _spectra(alone: Alone, role: str, found: Sequence[Spectrum], colour: str) -> Picture:
    layers = [Line(role, _points(s.values or ()), colour, faint=True) for s in found] * (len(found) > 1)
    middle = _median(found)
    ranks = [spectrum.rank_at(0.99) for spectrum in found]
    caption = (
        f"{alone.subject.name}, {role}: the median layer has 99 % of ‖ΔW‖² in {statistics.median(ranks):g} of {len(middle)}."
    )
    lines = [*layers, Line("median", _points(middle), colour)]
    return Picture(plot(lines, "direction", "singular value", f"Plot of singular values, {caption}", log=True), caption)


def _points(values: Sequence[float]) -> list[tuple[float, float]]:
    """The values over 1, 2, 3 …, down to a thousandth of the largest; what is less is rounding more often than not."""
    least = 1e-3 * max(values, default=0.0)
    return [(float(place), value) for place, value in enumerate(values, 1) if value > least]


def median_spectra(measured: Measured) -> dict[str, list[Line]]:
    """By role, a line for each adapter: the median of its layers' singular values."""
    found: dict[str, list[Line]] = {}
    for place, alone in enumerate(measured.alone):
        for role, names in measured.by_role(_nonzero(alone)).items():
            middle = _median([alone.spectra[name] for name in names])
            found.setdefault(role, []).append(Line(alone.subject.name, _points(middle), colour_of(place)))
    return found


def _median(found: Sequence[Spectrum]) -> list[float]:
    """The median of each singular value, over the layers that have as many as the one with most."""
    values = [spectrum.values or () for spectrum in found]
    whole = [of_layer for of_layer in values if len(of_layer) == max(map(len, values))]
    return [statistics.median(column) for column in zip(*whole, strict=True)]
