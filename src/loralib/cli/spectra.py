"""The singular values of an adapter's updates, as a table with a small picture of each layer's."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from ..printing import printable
from .terminal import shown, sparkline

if TYPE_CHECKING:
    from ..analysis.spectra import Spectrum

ENERGY = 0.99
_MOST_ROWS = 24
_PICTURE = "spectrum"
_LEAST_BARS, _MOST_BARS, _LEAST_NAME = len(_PICTURE), 32, 12
_GAP = "  "


_COLUMNS: "dict[str, Callable[[Spectrum], str]]" = {
    "r": lambda s: str(s.r),
    "alpha": lambda s: f"{s.lora_alpha:g}",
    "‖ΔW‖": lambda s: _digits(s.norm),
    "99 %": lambda s: "" if s.values is None else str(s.rank_at(ENERGY)),
    "intruders": lambda s: "" if s.intruders is None else str(s.intruders),
}


def table(spectra: "Mapping[str, Spectrum]", kind: Callable[[str], str], columns: int, everything: bool = False) -> list[str]:
    """The lines of the table, at most `columns` wide where that can be. Layers of one `kind` stand together, some of them where
    there are many, unless `everything` is asked for. No lines for no layers."""
    groups = _grouped(spectra, kind, everything)
    if not groups:
        return []
    columns_shown = _worth_telling(spectra.values())
    cells = {name: [shown(tell(spectra[name])) for tell in columns_shown.values()] for group in groups for name in group.shown}
    header = [shown(title) for title in columns_shown]
    widths = [max(map(len, column)) for column in zip(header, *cells.values(), strict=True)]
    room = columns - sum(widths) - len(_GAP) * (len(widths) + 1)
    for_names, bars = _shared_out(room, groups, max(len(spectra[name].values or ()) for name in cells))
    lines = [_row(["layer", *header, _PICTURE], [for_names, *widths])]
    for group in groups:
        lines += [shown(printable(group.title))] if group.title else []
        for name, label in zip(group.shown, _fitted(group.labels, for_names), strict=True):
            lines.append(_row([shown(label), *cells[name], shown(_picture(spectra[name], bars))], [for_names, *widths]))
        lines += [shown(f"  … and {_what_is_hidden(group.hidden, spectra)}")] if group.hidden else []
    return lines


def _grouped(names: Iterable[str], kind: Callable[[str], str], everything: bool) -> list["_Group"]:
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=_natural):
        groups.setdefault(kind(name), []).append(name)
    return [_Group(own, len(own) if everything else max(2, _MOST_ROWS // len(groups))) for own in groups.values()]


def _worth_telling(spectra: "Collection[Spectrum]") -> "dict[str, Callable[[Spectrum], str]]":
    """The columns, without those that would say the same, or nothing, of every layer."""
    alphas, counts = {s.lora_alpha for s in spectra}, {s.intruders for s in spectra}
    left_out = {"alpha"} if len(alphas) == 1 else set()
    left_out |= {"intruders"} if counts == {None} else set()
    return {title: tell for title, tell in _COLUMNS.items() if title not in left_out}


def _shared_out(room: int, groups: Sequence["_Group"], most: int) -> tuple[int, int]:
    """How many of `room` columns are for names and how many for pictures of at most `most` bars; names go first."""
    longest = max(len(label) for group in groups for label in group.labels)
    bars = max(_LEAST_BARS, min(most, _MOST_BARS, room - longest))
    return max(_LEAST_NAME, min(longest, room - bars)), bars


def _picture(spectrum: "Spectrum", bars: int) -> str:
    if spectrum.values is None:
        return "not finite"
    return sparkline(spectrum.values, bars) if any(spectrum.values) else "zero"


class _Group:
    """Layers of one kind: those that are shown, by labels that leave out what all have in common, and those that are not."""

    def __init__(self, names: Sequence[str], most: int):
        chosen = _spread(len(names), most)
        self.shown = [names[i] for i in chosen]
        self.hidden = [name for i, name in enumerate(names) if i not in set(chosen)]
        before, after = _in_common(names)
        self.title, self.labels = "", [printable(name) for name in self.shown]
        if before or after:
            self.title = ".".join([*before, "*", *after]) + f" ({len(names)} layers)"
            inner = [name.split(".")[len(before) : len(name.split(".")) - len(after)] for name in self.shown]
            self.labels = ["  " + printable(".".join(parts)) for parts in inner]


def _in_common(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The parts with which all of several names begin, and those with which they end; one part of each is left."""
    if len(names) == 1:
        return [], []
    parts = [name.split(".") for name in names]
    fewest = min(map(len, parts)) - 1
    before = _beginning(parts)[:fewest]
    after = _beginning([own[::-1] for own in parts])[: fewest - len(before)]
    return before, after[::-1]


def _beginning(lists: Sequence[Sequence[str]]) -> list[str]:
    """The words with which all of the lists begin."""
    return [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*lists, strict=False))]


def _spread(count: int, most: int) -> list[int]:
    """So many of `count` places, the first and the last among them.

    >>> _spread(24, 4), _spread(3, 4)
    ([0, 8, 15, 23], [0, 1, 2])
    """
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _fitted(labels: Sequence[str], width: int) -> list[str]:
    """The labels, with words cut short (numbers and the last word are not) as far as needed to fit; those that do not fit even
    so, without their middles.

    >>> _fitted(["down_blocks.0.attentions.1.attn1", "up_blocks.1.attentions.2.attn2"], 17)
    ['dow.0.att.1.attn1', 'up_.1.att.2.attn2']
    """
    longest = max(len(word) for label in labels for word in label.split("."))
    for letters in range(max(longest, 3), 2, -1):
        cut = [_abbreviated(label, letters) for label in labels]
        if max(map(len, cut)) <= width:
            break
    return [
        label if len(label) <= width else label[: width // 3] + "…" + label[len(label) - width + width // 3 + 1 :]
        for label in cut
    ]


def _abbreviated(label: str, letters: int) -> str:
    indent = "".join(takewhile(str.isspace, label))
    *words, last = label.strip().split(".")
    return indent + ".".join([*(word if word.isdecimal() else word[:letters] for word in words), last])


def _what_is_hidden(hidden: Sequence[str], spectra: "Mapping[str, Spectrum]") -> str:
    finite = [spectra[name] for name in hidden if spectra[name].values is not None]
    norms, ranks = [s.norm for s in finite], [s.rank_at(ENERGY) for s in finite]
    ranges = f": ‖ΔW‖ {_range(norms)}, 99 % in {_range(ranks)}" if finite else ""
    return f"{len(hidden)} more{ranges} (--all shows them)"


def _range(values: Sequence[float]) -> str:
    least, most = (str(value) if isinstance(value, int) else _digits(value) for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def _digits(value: float) -> str:
    """Four significant digits.

    >>> _digits(27.0), _digits(5404.2)
    ('27.00', '5404')
    """
    return f"{value:#.4g}".rstrip(".")


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line: the name, numbers, and a picture."""
    name, *numbers, picture = cells
    padded = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
    return _GAP.join([name.ljust(widths[0]), *padded, picture])
