"""Where the layers of diffusion transformers are in diffusers, by the tables of `diffusion_families`."""

import functools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .diffusion_families import FAMILIES, FLAT, REFUSED, Family


class Place(NamedTuple):
    """Where the rows of a layer's update belong: the layers in diffusers, whether each is as wide as the input, and whether the
    halves of the rows change places."""

    layers: tuple[str, ...]
    as_input: tuple[bool, ...]
    swapped: bool = False


class Row(NamedTuple):
    """A row, ready to be matched."""

    pattern: re.Pattern[str]
    target: str
    ratio: tuple[int, int] | None


@functools.cache
def _compiled(family: str, flat: bool) -> tuple[Row, ...]:
    found = next(known for known in FAMILIES if known.name == family)
    return tuple(_row(source, target, found.ratios.get(source), flat) for source, target in found.rows.items())


def _row(source: str, target: str, ratio: tuple[int, int] | None, flat: bool) -> Row:
    literal = re.escape(source.replace(".", "_") if flat else source)
    return Row(re.compile(literal.replace(r"\#", r"(\d{1,4})").replace(r"\*", r"([\w.-]+)")), target, ratio)


def place(family: Family, name: str, flat: bool, shape: tuple[int, int] | None = None) -> Place | None:
    """Where the layer that the original code calls `name` is in diffusers, if it is one of this family.

    flat: with underscores for dots. shape: (out, in) of its weight.

    >>> place(FAMILIES[0], "single_blocks_3_linear2", flat=True).layers
    ('transformer.single_transformer_blocks.3.proj_out',)
    """
    for row in _compiled(family.name, flat):
        if (match := row.pattern.fullmatch(name)) and (shape is None or row.ratio is None or _has_ratio(shape, row.ratio)):
            return _placed(row.target, match.groups())
    return None


def _has_ratio(shape: tuple[int, int], ratio: tuple[int, int]) -> bool:
    return shape[0] * ratio[1] == shape[1] * ratio[0]


def _placed(target: str, values: Iterable[str]) -> Place:
    given: Iterator[str] = iter(values)
    filled = re.sub(r"[#*]", lambda _: next(given), target)
    swapped, filled = filled.endswith("~"), filled.rstrip("~")
    start, brace, parts = filled.partition("{")
    names = parts.removesuffix("}").split(",") if brace else [""]
    layers = tuple(start + name.removesuffix("=in") for name in names)
    return Place(tuple(_with_component(layer) for layer in layers), tuple(name.endswith("=in") for name in names), swapped)


def _with_component(layer: str) -> str:
    return layer.replace(":", ".", 1) if ":" in layer else f"transformer.{layer}"


def is_original(flat: str) -> bool:
    """Whether a name with underscores for dots is of one of the families, so that it is read as theirs."""
    return any(place(family, flat, flat=True) for family in FAMILIES if FLAT in family.prefixes)


def refused_family(name: str) -> str | None:
    """The family of a layer that no table names, if it is known all the same."""
    return next((family for pattern, family in REFUSED.items() if re.match(pattern, name)), None)
