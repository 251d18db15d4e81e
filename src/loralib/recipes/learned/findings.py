"""The numbers of a report as sentences: a summary that says what was found, by how much, and what chance would give."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...analysis import Amplification, SubspaceSimilarity, total_cosine
from .drawings import number
from .measured import Alone, Measured, Pair
from .tables import chance

DIRECTIONS = {
    "right": "input directions of ΔW (its right singular vectors)",
    "left": "output directions of ΔW (its left singular vectors)",
    "A": "right singular vectors of A",
}
_SOME, _NEARLY, _TOP = 8, 0.1, 0.1  # directions; a cosine of nearly orthogonal updates; the share of W's directions


def findings(measured: Measured) -> list[str]:
    """The sentences, those on pairs first."""
    found = [sentence for pair in measured.pairs for sentence in _of_pair(measured, pair)]
    found += [sentence for alone in measured.alone for sentence in _of_one(measured, alone)]
    return [*found, *measured.notes]


# --- two adapters ---------------------------------------------------------------------------------------------------


def _of_pair(measured: Measured, pair: Pair) -> Iterator[str]:
    known = {name: found for name, found in pair.similarity.items() if found.phi.numel()}
    if not known:
        yield f"{pair.title}: in no layer that both adapt is either update other than zero."
        return
    yield _first_directions(measured, pair, known)
    yield _all_directions(measured, pair, known)
    if pair.start is not None:
        yield _same_seed(pair, pair.start)
    yield _combined(pair)


def _first_directions(measured: Measured, pair: Pair, known: Mapping[str, SubspaceSimilarity]) -> str:
    """How far the first direction of the one lies in the first eight of the other, by role."""
    some = min(_SOME, *(found.phi.shape[1] for found in known.values()))
    by_role = {role: [known[name].at(1, some) for name in names] for role, names in measured.by_role(known).items()}
    order = sorted(by_role, key=lambda role: -statistics.fmean(by_role[role]))
    shared = _listed([f"{_mean(by_role[role])} on {role}" for role in order])
    odds = _range(chance(found, 1, some) for found in known.values())
    where = f"lies in {pair.b.name}'s first {_count(some)}" if some > 1 else f"agrees with {pair.b.name}'s"
    return f"{pair.a.name}'s first direction {where} by φ = {shared}; chance {odds}."


def _all_directions(measured: Measured, pair: Pair, known: Mapping[str, SubspaceSimilarity]) -> str:
    """Where the two share most, and how far all their directions do."""
    best = max(known, key=lambda name: known[name].at(1, 1))
    full = [found.at(*found.phi.shape) for found in known.values()]
    odds = _range(chance(found, *found.phi.shape) for found in known.values())
    ratio = statistics.fmean(full) / statistics.fmean(chance(found, *found.phi.shape) for found in known.values())
    much = f"{number(round(ratio, 1))} times chance" if ratio >= 1.05 else "no more than chance"
    return (
        f"{pair.title}: their first directions are closest in {best}, φ(1, 1) = {known[best].at(1, 1):.2f}; over all "
        f"directions φ is {_mean(full)}, {much} ({odds})."
    )


def _same_seed(pair: Pair, start: Mapping[str, SubspaceSimilarity] | str) -> str:
    """What the two have in common because they began alike."""
    begun = f"{pair.title} began with the same seed, {pair.a.seed}"
    inflated = "φ over A and over input directions is inflated by that; compare runs of different seeds"
    if isinstance(start, str):
        return (
            f"{begun}, so that rows of their A may have been the same: {inflated}. How far is not known: {start.rstrip('.')}."
        )
    known = [found for found in start.values() if found.phi.numel()]
    values = [found.at(*found.phi.shape) for found in known]
    odds = [chance(found, *found.phi.shape) for found in known]
    if not known or statistics.fmean(values) <= 2 * statistics.fmean(odds):
        return f"{begun}, and yet with different A: φ of all directions was {_mean(values) if known else 0} then."
    return f"{begun}: φ of all directions of A was {_mean(values)} before any training, chance {_range(odds)}; {inflated}."


def _combined(pair: Pair) -> str:
    """Whether the two interfere when they are combined."""
    cosine = total_cosine(pair.overlap)
    if cosine > _NEARLY:
        meaning = "they point the same way in part, so their sum is larger than either"
    elif cosine < -_NEARLY:
        meaning = "they work against each other, so a part of both is lost in their sum"
    else:
        meaning = "nearly orthogonal, so neither takes away from the other in their sum"
    inputs = statistics.fmean(found.shared_inputs for found in pair.overlap.values())
    outputs = statistics.fmean(found.shared_outputs for found in pair.overlap.values())
    return (
        f"Combined, {pair.title} have updates of cosine {cosine:.2f}: {meaning}. They share {inputs:.0%} of their input "
        f"directions and {outputs:.0%} of their output directions."
    )


# --- one adapter ----------------------------------------------------------------------------------------------------


def _of_one(measured: Measured, alone: Alone) -> Iterator[str]:
    name, usable = alone.subject.name, {n: s for n, s in alone.spectra.items() if s.values and any(s.values)}
    if len(usable) < len(alone.spectra):
        empty = [layer for layer in alone.spectra if layer not in usable]
        have = "has" if len(empty) == 1 else "have"
        yield f"{name}: {_layers(len(empty))} of {len(alone.spectra)} {have} an update of zero, such as {empty[0]}."
    if usable:
        yield _where(measured, alone)
        ranks = [spectrum.rank_at(0.99) for spectrum in usable.values()]
        yield (f"{name}: 99 % of ‖ΔW‖² lies in {_directions(ranks)} of a layer, where r is {alone.subject.rank}.")
    if known := [found for found in alone.amplification.values() if math.isfinite(found.factor)]:
        yield from _amplified(name, known)
    if alone.intruders:
        having = sum(map(bool, alone.intruders.values()))
        count = sum(map(len, alone.intruders.values()))
        yield (
            f"{name}: {count} intruder dimensions in {having} of {_layers(len(alone.intruders))}: leading directions of W + ΔW "
            "that W does not have."
        )


def _where(measured: Measured, alone: Alone) -> str:
    """In which layer and in which roles the update is large."""
    norms = {name: spectrum.norm for name, spectrum in alone.spectra.items() if spectrum.values}
    total = sum(norm**2 for norm in norms.values())
    groups = measured.by_role(norms)
    shares = {role: sum(norms[name] ** 2 for name in names) / total for role, names in groups.items()}
    largest = max(norms, key=lambda name: norms[name])
    sentence = f"{alone.subject.name}: the update is largest in {largest}, ‖ΔW‖ = {number(norms[largest])}"
    if len(norms) > 1:
        sentence += f" (median of {_layers(len(norms))}: {number(statistics.median(norms.values()))})"
    if len(shares) == 1:
        return f"{sentence}."
    order = sorted(shares, key=lambda role: -shares[role])
    return f"{sentence}; of ‖ΔW‖², {_listed([f'{shares[role]:.0%} is in {role}' for role in order[:4]])}."


def _amplified(name: str, known: Sequence[Amplification]) -> Iterator[str]:
    factors = [found.factor for found in known]
    yield f"{name}: ΔW amplifies what W has in its directions {_times(factors)}."
    weaker = statistics.median(found.by_weight / found.by_update for found in known)
    stronger = statistics.median(found.by_update / found.by_random for found in known if found.by_random)
    sentence = f"{name}: in those directions W is {number(weaker)} times weaker than in its own strongest"
    sentence += f" and {number(stronger)} times as strong as in random ones (medians)"
    shares = [found.overlap[_TOP] for found in known if _TOP in found.overlap]
    top = f"; {statistics.fmean(shares):.0%} of ‖ΔW‖² lies in W's top {_TOP:.0%} of directions" if shares else ""
    yield f"{sentence}{top}."


# --- words ----------------------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> str:
    """The mean, and the range of several values.

    >>> _mean([0.5]), _mean([0.5, 0.7])
    ('0.50', '0.60 (0.50 to 0.70)')
    """
    spread = _range(values)
    return f"{statistics.fmean(values):.2f}" + (f" ({spread})" if " to " in spread else "")


def _range(values: Iterable[float]) -> str:
    """One number where all are the same to two digits, else the smallest and the largest."""
    values = list(values)
    low, high = (f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _directions(counts: Sequence[int]) -> str:
    """How many directions, with the median of different numbers.

    >>> _directions([1, 1]), _directions([2, 3, 7])
    ('1 direction', '2 to 7 directions (median 3)')
    """
    if len(set(counts)) > 1:
        return f"{min(counts)} to {max(counts)} directions (median {statistics.median(counts):g})"
    return f"{counts[0]} direction{'' if counts[0] == 1 else 's'}"


def _times(factors: Sequence[float]) -> str:
    low, high, middle = map(number, (min(factors), max(factors), statistics.median(factors)))
    return f"{low} times" if low == high else f"{low} to {high} times (median {middle})"


def _listed(parts: Sequence[str]) -> str:
    """The parts as a list in a sentence.

    >>> _listed(["a"]), _listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _count(number: int) -> str:
    """A small number as a word."""
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
    return words[number] if number < len(words) else str(number)


def _layers(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"
