"""Numbers and lists in sentences."""

import statistics
from collections.abc import Sequence

from .drawings import number


def mean_of(values: Sequence[float]) -> str:
    """The mean, and the range of values that differ.

    >>> mean_of([0.5, 0.501]), mean_of([0.5, 0.7])
    ('0.50', '0.60 (0.50 to 0.70)')
    """
    spread = range_of(values)
    return f"{statistics.fmean(values):.2f}" + (f" ({spread})" if " to " in spread else "")


def range_of(values: Sequence[float]) -> str:
    """One number where all are the same to two digits, else the smallest and the largest.

    >>> range_of([0.021, 0.02]), range_of([0.5, 0.7])
    ('0.02', '0.50 to 0.70')
    """
    low, high = (f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def times(factors: Sequence[float]) -> str:
    """By how much, over several layers.

    >>> times([5.0]), times([3.9, 7.0, 18.6])
    ('5 times', '3.9 to 18.6 times (median 7)')
    """
    low, high, middle = map(number, (min(factors), max(factors), statistics.median(factors)))
    return f"{low} times" if low == high else f"{low} to {high} times (median {middle})"


def share(value: float) -> str:
    """A share of something.

    >>> share(0.13)
    '13 %'
    """
    return f"{100 * value:.0f} %"


def listed(parts: Sequence[str]) -> str:
    """The parts as a list in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def word_for(count: int) -> str:
    """A small number as a word.

    >>> word_for(8), word_for(12)
    ('eight', '12')
    """
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
    return words[count] if count < len(words) else str(count)


def counted(count: int, what: str) -> str:
    """How many there are of something.

    >>> counted(1, "layer"), counted(2, "layer")
    ('1 layer', '2 layers')
    """
    return f"{count} {what}{'' if count == 1 else 's'}"


def labels(names: Sequence[str]) -> tuple[str, list[str]]:
    """What all names have in common, with a star for the rest, and the rest of each.

    >>> labels(["layer.0.q", "layer.10.q"]), labels(["q"])
    (('layer.*.q', ['0', '10']), ('q', ['q']))
    """
    parts = [name.split(".") for name in names]
    fewest = min(map(len, parts)) - 1
    before = _shared(parts)[:fewest] if len(names) > 1 else []
    after = _shared([own[::-1] for own in parts])[: fewest - len(before)][::-1] if len(names) > 1 else []
    if not before and not after:
        return (names[0] if len(names) == 1 else ""), list(names)
    return ".".join([*before, "*", *after]), [".".join(own[len(before) : len(own) - len(after)]) for own in parts]


def _shared(lists: Sequence[Sequence[str]]) -> list[str]:
    """The words with which all of the lists begin."""
    count = 0
    for words in zip(*lists, strict=False):
        if len(set(words)) > 1:
            break
        count += 1
    return list(lists[0][:count])
