"""All numbers of a report: of each adapter by itself, and of every two of them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from ...adapters.adapter import Adapter
from ...analysis import (
    Amplification,
    Directions,
    Intruder,
    Overlap,
    Spectrum,
    SubspaceSimilarity,
    amplification,
    intruder_dimensions,
    overlap,
    spectra,
    subspace_similarity,
)
from ...analysis.places import kinds_of
from ...checkpoints.base_weights import Source
from ...errors import LoRAError
from .starting import starting
from .subjects import Subject, pairs

Similarities = Mapping[str, SubspaceSimilarity]


@dataclass(frozen=True)
class Alone:
    """What is known of one adapter. amplification and intruders: empty without a base model."""

    subject: Subject
    spectra: Mapping[str, Spectrum]
    amplification: Mapping[str, Amplification] = field(default_factory=dict)
    intruders: Mapping[str, tuple[Intruder, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """What is known of two adapters, of the layers that both have. start: of two that began with the same seed, the similarity
    over A before the first step, or a sentence that says why it is not known; None for all others."""

    a: Subject
    b: Subject
    similarity: Similarities
    overlap: Mapping[str, Overlap]
    start: Similarities | str | None = None

    @property
    def title(self) -> str:
        """The names of both."""
        return f"{self.a.name} and {self.b.name}"


@dataclass(frozen=True)
class Measured:
    """The numbers. of: which directions the similarities are of. base: the model that W was read from. notes: sentences on what
    could not be computed."""

    of: Directions
    alone: Sequence[Alone]
    pairs: Sequence[Pair] = ()
    base: str | None = None
    notes: Sequence[str] = ()

    @cached_property
    def roles(self) -> Mapping[str, str]:
        """What each layer is in its block, as short as tells the kinds apart."""
        return kinds_of(dict.fromkeys(name for alone in self.alone for name in alone.spectra))

    def by_role(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The names in groups of one role, layer 10 after layer 9."""
        groups: dict[str, list[str]] = {}
        for name in sorted(names, key=_natural):
            groups.setdefault(self.roles[name], []).append(name)
        return groups

    def in_order(self, names: Iterable[str]) -> list[str]:
        """The names, those of one role next to each other."""
        return [name for group in self.by_role(names).values() for name in group]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def measure(
    found: Sequence[Subject],
    of: Directions = "right",
    base: Source | None = None,
    both: Sequence[tuple[Subject, Subject]] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Compute everything, one pair and one adapter after the other. both: the pairs to compare; None: every two.

    Raises `LoRAError` for two adapters that share no layer, and for a base that does not fit; where an adapter has DoRA layers,
    what depends on W is left out for those, and `notes` say so.
    """
    both = pairs(found) if both is None else both
    total = len(found) + len(both)
    notes: list[str] = []
    compared = []  # first, since it is what most often cannot be done
    starts: dict[str, Adapter | str] = {}
    for done, (a, b) in enumerate(both):
        progress(done, total)
        compared.append(_compared(a, b, of, starts))
    alone = []
    for done, subject in enumerate(found, len(both)):
        progress(done, total)
        alone.append(_alone(subject, base, notes))
    progress(total, total)
    name = None if base is None else type(base).__name__ if isinstance(base, nn.Module) else str(base)
    return Measured(of, alone, compared, name, notes)


def _compared(a: Subject, b: Subject, of: Directions, starts: dict[str, Adapter | str]) -> Pair:
    try:
        similarity, overlaps = subspace_similarity(a.adapter, b.adapter, of), overlap(a.adapter, b.adapter)
    except LoRAError as error:
        raise type(error)(
            f"{a.path} and {b.path}: {error.problem}", error.remedy, error.option, "Nothing was written."
        ) from None
    return Pair(a, b, similarity, overlaps, _start(a, b, starts))


def _start(a: Subject, b: Subject, starts: dict[str, Adapter | str]) -> Similarities | str | None:
    """What `Pair.start` is. starts: the adapters before their first steps, by name, where they were made before."""
    if a.seed is None or a.seed != b.seed:
        return None
    for subject in (a, b):
        if subject.name not in starts:
            starts[subject.name] = starting(subject)
    one, other = starts[a.name], starts[b.name]
    if isinstance(one, str) or isinstance(other, str):
        return one if isinstance(one, str) else str(other)
    return subspace_similarity(one, other, "A")


def _alone(subject: Subject, base: Source | None, notes: list[str]) -> Alone:
    found = spectra(subject.adapter)
    if base is None:
        return Alone(subject, found)
    plain = {name: update for name, update in subject.adapter.layers.items() if not update.is_dora}
    if len(plain) < len(subject.adapter.layers):
        name = next(name for name in subject.adapter.layers if name not in plain)
        count = len(subject.adapter.layers) - len(plain)
        notes.append(
            f"{subject.name}: amplification and intruders are left out for its DoRA layers ({count}, such as {name}), whose "
            "update scales all of W; spectra and similarities are those of s·B·A."
        )
    if not plain:
        return Alone(subject, found)
    adapter = subject.adapter.with_layers(plain)
    return Alone(subject, found, amplification(adapter, base), intruder_dimensions(adapter, base))
