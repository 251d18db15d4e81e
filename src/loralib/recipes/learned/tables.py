"""The numbers of a report as tables: for CSV files, and for the page."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...analysis import Amplification, Spectrum, SubspaceSimilarity, total_cosine
from .measured import Measured, Pair

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table. name: of its file, without the ending. A number that is not finite is an empty cell."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def without_empty(self) -> "Table":
        """The table without columns that have nothing in any row.

        >>> Table("t", "t", ("a", "b"), [[1, None], [2, None]]).without_empty().columns
        ('a',)
        """
        kept = [at for at in range(len(self.columns)) if any(row[at] is not None for row in self.rows)]
        rows = [[row[at] for at in kept] for row in self.rows]
        return Table(self.name, self.title, tuple(self.columns[at] for at in kept), rows)

    def holds_numbers(self, at: int) -> bool:
        """Whether the column at this place holds numbers and nothing else.

        >>> table = Table("t", "t", ("a", "b"), [["x", 1], ["y", None]])
        >>> table.holds_numbers(0), table.holds_numbers(1)
        (False, True)
        """
        return not any(isinstance(row[at], str) for row in self.rows)

    def as_csv(self) -> str:
        """The table as RFC 4180 has it, with its columns in the first line."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([self.columns, *self.rows])
        return text.getvalue()


def tables(measured: Measured) -> list[Table]:
    """All tables that are not empty."""
    made = (table(measured) for table in (adapters, pairs, spectra, similarity, overlap, amplification, intruders))
    return [table for table in made if table.rows]


def adapters(measured: Measured) -> Table:
    """A row for each adapter."""
    columns = ("adapter", "layers", "r", "parameters", "‖ΔW‖", "seed", "metric", "value", "trained on", "model")
    rows = []
    for alone in measured.alone:
        subject, run = alone.subject, alone.subject.run
        facts: list[Cell] = [subject.name, len(alone.spectra), subject.rank, subject.adapter.num_parameters()]
        facts += [finite(math.hypot(*(s.norm for s in alone.spectra.values()))), subject.seed]
        facts += [run.metric, run.value, run.options.data_name, str(run.options.model)] if run else [None] * 4
        rows.append(facts)
    return Table("adapters", "Adapters", columns, rows)


def spectra(measured: Measured) -> Table:
    """A row for each layer of each adapter: how large its update is, and how many directions it has."""
    columns = ("adapter", "layer", "role", "r", "‖ΔW‖", "σ₁", "stable rank", "effective rank", "90 % in", "99 % in")
    rows = [
        [alone.subject.name, name, measured.roles[name], *_of_spectrum(alone.spectra[name])]
        for alone in measured.alone
        for name in measured.in_order(alone.spectra)
    ]
    return Table("spectra", "Spectra, layer by layer", columns, rows)


def _of_spectrum(spectrum: Spectrum) -> list[Cell]:
    if not spectrum.values or not any(spectrum.values):
        return [spectrum.r, finite(spectrum.norm), *[None] * 5]
    sizes = (spectrum.norm, spectrum.values[0], spectrum.stable_rank, spectrum.effective_rank)
    return [spectrum.r, *map(finite, sizes), spectrum.rank_at(0.9), spectrum.rank_at(0.99)]


def similarity(measured: Measured) -> Table:
    """A row for each layer of each pair and for each i and j, which are powers of two and the ranks."""
    columns = ("first", "second", "layer", "role", "i", "j", "φ", "chance", "φ of A at the start")
    rows: list[list[Cell]] = []
    for pair in measured.pairs:
        for name in measured.in_order(pair.similarity):
            found = pair.similarity[name]
            places = [(i, j) for i in powers(found.phi.shape[0]) for j in powers(found.phi.shape[1])]
            for i, j in places:
                values = (found.at(i, j), chance(found, i, j), started(pair, name, i, j))
                rows.append([pair.a.name, pair.b.name, name, measured.roles[name], i, j, *values])
    return Table("similarity", "Similarity of subspaces, layer by layer", columns, rows)


def pairs(measured: Measured) -> Table:
    """A row for each pair: means over its layers."""
    columns = ("first", "second", "layers", "φ(1, 1)", "its chance", "φ of all", "chance of all", "cosine of all ΔW")
    rows: list[list[Cell]] = []
    for pair in measured.pairs:
        known = [found for found in pair.similarity.values() if found.phi.numel()]
        first, whole = [(found, 1, 1) for found in known], [(found, *found.phi.shape) for found in known]
        values: list[Cell] = []
        for places in (first, whole) if known else ():
            values.append(statistics.fmean(found.at(i, j) for found, i, j in places))
            values.append(statistics.fmean(chance(found, i, j) for found, i, j in places))
        rows.append(
            [pair.a.name, pair.b.name, len(pair.similarity), *(values or [None] * 4), finite(total_cosine(pair.overlap))]
        )
    return Table("pairs", "All pairs", columns, rows)


def in_short(measured: Measured, pair: Pair) -> Table:
    """A row for each layer of a pair: φ of the first directions, of the first and the first eight, of all; the cosine."""
    columns = (
        "layer",
        "role",
        "φ(1, 1)",
        "its chance",
        "j",
        "φ(1, j)",
        "chance of that",
        "φ of all",
        "chance of all",
        "cosine",
    )
    rows: list[list[Cell]] = []
    for name in measured.in_order(pair.similarity):
        found = pair.similarity[name]
        i, j = found.phi.shape
        places = ((1, 1), (1, min(8, j)), (i, j)) if i and j else ()
        values: list[Cell] = [v for place in places for v in (found.at(*place), chance(found, *place))] or [None] * 6
        cosine = finite(pair.overlap[name].cosine) if name in pair.overlap else None
        rows.append([name, measured.roles[name], *values[:2], min(8, j), *values[2:], cosine])
    return Table("in-short", f"{pair.title}, layer by layer", columns, rows)


def overlap(measured: Measured) -> Table:
    """A row for each layer of each pair: whether its updates reinforce each other."""
    columns = ("first", "second", "layer", "role", "cosine", "shared inputs", "shared outputs", "‖ΔW‖ of first", "of second")
    rows: list[list[Cell]] = []
    for pair in measured.pairs:
        for name in measured.in_order(pair.overlap):
            found = pair.overlap[name]
            values = (found.cosine, found.shared_inputs, found.shared_outputs, found.norm_a, found.norm_b)
            rows.append([pair.a.name, pair.b.name, name, measured.roles[name], *map(finite, values)])
    return Table("overlap", "Overlap of the updates, layer by layer", columns, rows)


def amplification(measured: Measured) -> Table:
    """A row for each layer of each adapter, as in the paper's Table 7, and the overlap of appendix H."""
    known = [of_layer for alone in measured.alone for of_layer in alone.amplification.values()]
    shares = sorted({share for of_layer in known for share in of_layer.overlap})
    columns = ("adapter", "layer", "role", "r", "‖UᵀWV‖ of ΔW", "of W", "of random", "‖W‖", "‖ΔW‖", "factor")
    rows = [
        [alone.subject.name, name, measured.roles[name], *_of_amplification(alone.amplification[name], shares)]
        for alone in measured.alone
        for name in measured.in_order(alone.amplification)
    ]
    titles = [*columns, *(f"of ΔW in W's top {100 * share:g} %" for share in shares)]
    return Table("amplification", "Amplification, layer by layer", titles, rows)


def _of_amplification(found: Amplification, shares: Iterable[float]) -> list[Cell]:
    numbers = (found.by_update, found.by_weight, found.by_random, found.weight_norm, found.update_norm, found.factor)
    return [found.r, *map(finite, numbers), *(finite(found.overlap.get(share, math.nan)) for share in shares)]


def intruders(measured: Measured) -> Table:
    """A row for each intruder dimension."""
    columns = ("adapter", "layer", "place", "singular value", "similarity")
    rows = [
        [alone.subject.name, name, intruder.index + 1, finite(intruder.singular_value), finite(intruder.similarity)]
        for alone in measured.alone
        for name, of_layer in alone.intruders.items()
        for intruder in of_layer
    ]
    return Table("intruders", "Intruder dimensions", columns, rows)


# --- numbers --------------------------------------------------------------------------------------------------------


def powers(most: int) -> list[int]:
    """The powers of two below `most`, and `most`.

    >>> powers(8), powers(6), powers(0)
    ([1, 2, 4, 8], [1, 2, 4, 6], [])
    """
    return [1 << k for k in range(most.bit_length()) if 1 << k < most] + [most] * (most > 0)


def chance(found: SubspaceSimilarity, i: int, j: int) -> float:
    """φ(i, j) of random subspaces."""
    return max(i, j) / found.n


def started(pair: Pair, name: str, i: int, j: int) -> float | None:
    """φ(i, j) over A before the first step, where it is known."""
    if pair.start is None or isinstance(pair.start, str) or name not in pair.start:
        return None
    phi = pair.start[name].phi
    return float(phi[i - 1, j - 1]) if i <= phi.shape[0] and j <= phi.shape[1] else None


def finite(value: float) -> float | None:
    """The value; None where it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None
