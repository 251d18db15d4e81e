"""The numbers of a report as sentences: a summary that says what was found, by how much, and what chance would give."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...analysis import Amplification, SubspaceSimilarity, total_cosine
from .drawings import number
from .measured import Alone, Measured, Pair, Similarities
from .tables import chance
from .wording import counted, listed, mean_of, range_of, share, times, word_for

DIRECTIONS = {
    "right": "input directions of ΔW (its right singular vectors)",
    "left": "output directions of ΔW (its left singular vectors)",
    "A": "right singular vectors of A",
}
_SOME, _NEARLY, _TOP = 8, 0.1, 0.1  # directions; a cosine of nearly orthogonal updates; the share of W's directions
_FEW = 3  # pairs, or adapters, of which all is said at once


@dataclass(frozen=True)
class Findings:
    """What was found about one thing. folded: among those shown after a click, where there is much else."""

    about: str
    sentences: Sequence[str]
    folded: bool = False


def findings(measured: Measured) -> list[Findings]:
    """All sentences: on all pairs, on each pair, on each adapter, and on what could not be computed."""
    folded = len(measured.pairs) > _FEW
    everything = [Findings(f"All {len(measured.pairs)} pairs", list(_of_all(measured)))] if len(measured.pairs) > 1 else []
    of_pairs = [Findings(pair.title, list(_of_pair(measured, pair)), folded) for pair in measured.pairs]
    many = len(measured.alone) > _FEW
    of_each = [Findings(alone.subject.name, list(_of_one(measured, alone)), many) for alone in measured.alone]
    left_out = [Findings("Left out", measured.notes)] if measured.notes else []
    return [found for found in (*everything, *of_pairs, *of_each, *left_out) if found.sentences]


def known(pair: Pair) -> Similarities:
    """The similarity of a pair in the layers where neither update is zero."""
    return {name: found for name, found in pair.similarity.items() if found.phi.numel()}


# --- several pairs --------------------------------------------------------------------------------------------------


def _of_all(measured: Measured) -> Iterator[str]:
    means = {pair.title: statistics.fmean(f.at(1, 1) for f in known(pair).values()) for pair in measured.pairs if known(pair)}
    if len(means) < 2:
        return
    most, least = max(means, key=lambda title: means[title]), min(means, key=lambda title: means[title])
    odds = range_of([chance(found, 1, 1) for pair in measured.pairs for found in known(pair).values()])
    yield (
        f"The first directions of {most} agree most, φ(1, 1) = {means[most]:.2f} in the mean over layers; those of {least} "
        f"agree least, {means[least]:.2f}; chance {odds}."
    )
    if len(set(measured.roles.values())) > 1:
        yield _by_role(measured)
    seeds = {pair.title: pair.start is not None for pair in measured.pairs}
    same = [means[title] for title in means if seeds[title]]
    different = [means[title] for title in means if not seeds[title]]
    if same and different:
        yield (
            f"φ(1, 1) of runs with the same seed is {mean_of(same)}, with different seeds {mean_of(different)}: what began "
            "alike stays alike, so only different seeds show what was learned twice."
        )


def _by_role(measured: Measured) -> str:
    """In which kinds of layers the adapters agree, over all pairs."""
    found: dict[str, list[float]] = {}
    for pair in measured.pairs:
        for name, of_layer in known(pair).items():
            found.setdefault(measured.roles[name], []).append(of_layer.at(1, 1))
    order = sorted(found, key=lambda role: -statistics.fmean(found[role]))
    return f"Over all pairs, φ(1, 1) is {listed([f'{statistics.fmean(found[role]):.2f} on {role}' for role in order])}."


# --- two adapters ---------------------------------------------------------------------------------------------------


def _of_pair(measured: Measured, pair: Pair) -> Iterator[str]:
    if similarity := known(pair):
        yield _first_directions(measured, pair, similarity)
        yield _all_directions(similarity)
        if pair.start is not None:
            yield _same_seed(pair, pair.start)
        yield _combined(pair)
    else:
        yield "In no layer that both adapt are both updates other than zero."


def _first_directions(measured: Measured, pair: Pair, similarity: Similarities) -> str:
    """How far the first direction of the one lies in the first eight of the other, by role."""
    some = min(_SOME, *(found.phi.shape[1] for found in similarity.values()))
    by_role = {role: [similarity[name].at(1, some) for name in names] for role, names in measured.by_role(similarity).items()}
    order = sorted(by_role, key=lambda role: -statistics.fmean(by_role[role]))
    shared = listed([f"{mean_of(by_role[role])} on {role}" for role in order])
    odds = range_of([chance(found, 1, some) for found in similarity.values()])
    where = f"lies in the first {word_for(some)} of" if some > 1 else "agrees with that of"
    return f"The first direction of {pair.a.name} {where} {pair.b.name} by φ = {shared}; chance {odds}."


def _all_directions(similarity: Similarities) -> str:
    """Where the two share most, and how far all their directions do."""
    best = max(similarity, key=lambda name: similarity[name].at(1, 1))
    whole, odds = _over_all(similarity.values())
    ratio = statistics.fmean(whole) / statistics.fmean(odds)
    much = f"{ratio:.2g} times chance" if ratio >= 1.1 else "about chance" if ratio > 0.9 else "less than chance"
    return (
        f"Their first directions are closest in {best}, φ(1, 1) = {similarity[best].at(1, 1):.2f}; of all directions φ is "
        f"{mean_of(whole)}, {much} ({range_of(odds)})."
    )


def _over_all(found: Iterable[SubspaceSimilarity]) -> tuple[list[float], list[float]]:
    """φ of all directions, layer by layer, and what chance gives."""
    found = list(found)
    return [one.at(*one.phi.shape) for one in found], [chance(one, *one.phi.shape) for one in found]


def _same_seed(pair: Pair, start: Similarities | str) -> str:
    """What the two have in common because they began alike."""
    begun = f"Both began with seed {pair.a.seed}"
    inflated = "φ over A and over input directions is inflated by that, so compare runs of different seeds"
    if isinstance(start, str):
        return f"{begun}, so rows of their A may have been the same: {inflated}. How far is not known: {start.rstrip('.')}."
    found = {name: one for name, one in start.items() if one.phi.numel()}
    whole, odds = (dict(zip(found, values, strict=True)) for values in _over_all(found.values()))
    alike = [name for name in found if whole[name] > (1 + odds[name]) / 2]
    if not alike:
        values = list(whole.values()) or [0.0]
        return f"{begun}, and yet with different A: φ of all directions was {mean_of(values)} then."
    where = "" if len(alike) == len(found) else f"in {len(alike)} of {counted(len(found), 'layer')}, such as {alike[0]}, "
    values, chances = [whole[name] for name in alike], [odds[name] for name in alike]
    return (
        f"{begun}: {where}φ of all directions of A was {mean_of(values)} before any training, chance {range_of(chances)}; "
        f"there {inflated}."
    )


def _combined(pair: Pair) -> str:
    """Whether the two interfere when they are combined."""
    cosine = total_cosine(pair.overlap)
    if cosine > _NEARLY:
        meaning = "they point the same way in part, and their sum is larger than orthogonal ones would make it"
    elif cosine < -_NEARLY:
        meaning = "they work against each other, and a part of both is lost in their sum"
    else:
        meaning = "nearly orthogonal, so that neither takes away from the other in their sum"
    return f"Over all layers the cosine of their updates is {cosine:.2f}: {meaning}."


# --- one adapter ----------------------------------------------------------------------------------------------------


def _of_one(measured: Measured, alone: Alone) -> Iterator[str]:
    usable = {name: spectrum for name, spectrum in alone.spectra.items() if any(spectrum.values or ())}
    if empty := [name for name in alone.spectra if name not in usable]:
        has = "has" if len(empty) == 1 else "have"
        yield f"{counted(len(empty), 'layer')} of {len(alone.spectra)} {has} an update of zero, such as {empty[0]}."
    if usable:
        norms = {name: spectrum.norm for name, spectrum in usable.items()}
        yield _where(measured.by_role(norms), norms)
        yield _ranks([spectrum.rank_at(0.99) for spectrum in usable.values()], alone.subject.rank)
    if finite := [found for found in alone.amplification.values() if math.isfinite(found.factor)]:
        yield from _amplified(finite)
    if alone.intruders:
        layers, count = sum(map(bool, alone.intruders.values())), sum(map(len, alone.intruders.values()))
        found = f"{counted(count, 'intruder dimension')} in {layers} of" if count else "No intruder dimensions in"
        yield f"{found} {counted(len(alone.intruders), 'layer')}: leading directions of W + ΔW that W does not have."


def _where(groups: Mapping[str, Sequence[str]], norms: Mapping[str, float]) -> str:
    """In which layer and in which roles the update is large."""
    total = sum(norm**2 for norm in norms.values())
    shares = {role: sum(norms[name] ** 2 for name in names) / total for role, names in groups.items()}
    largest = max(norms, key=lambda name: norms[name])
    sentence = f"The update is largest in {largest}, ‖ΔW‖ = {number(norms[largest])}"
    if len(norms) > 1:
        sentence += f" (median of {counted(len(norms), 'layer')}: {number(statistics.median(norms.values()))})"
    if len(shares) == 1:
        return f"{sentence}."
    order = sorted(shares, key=lambda role: -shares[role])
    return f"{sentence}; of ‖ΔW‖², {listed([f'{share(shares[role])} is in {role}' for role in order[:4]])}."


def _ranks(ranks: Sequence[int], r: str) -> str:
    """How many directions carry nearly all of a layer's update."""
    least, most = min(ranks), max(ranks)
    count = counted(least, "direction")
    if least < most:
        count = f"{least} to {most} directions (median {statistics.median(ranks):g})"
    return f"99 % of a layer's ‖ΔW‖² lies in {count}, where r is {r}."


def _amplified(found: Sequence[Amplification]) -> Iterator[str]:
    yield f"ΔW amplifies what W has in its directions {times([of_layer.factor for of_layer in found])}."
    weaker = statistics.median(of_layer.by_weight / of_layer.by_update for of_layer in found)
    stronger = statistics.median(of_layer.by_update / of_layer.by_random for of_layer in found if of_layer.by_random)
    sentence = (
        f"There W is {weaker:.2g} times weaker than in its own strongest directions, and {stronger:.2g} times as strong as "
    )
    sentence += "in random ones (medians)"
    shares = [of_layer.overlap[_TOP] for of_layer in found if _TOP in of_layer.overlap]
    odds = [of_layer.chance[_TOP] for of_layer in found if _TOP in of_layer.chance]
    random = f", chance {share(statistics.fmean(odds))}" if odds else ""
    inside = f"; {share(statistics.fmean(shares))} of ‖ΔW‖² lies in the top" if shares else ""
    yield f"{sentence}{inside} {share(_TOP)} of W's directions{random}." if inside else f"{sentence}."
