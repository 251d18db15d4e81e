"""Small pictures as SVG for a page: text and lines take the page's colours, and the cells of a heatmap are one PNG.

Each has a text alternative. Whatever is drawn may come from a stranger's file: all texts are escaped.
"""

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from markupsafe import Markup, escape
from matplotlib.colors import to_rgb
from matplotlib.ticker import Locator, LogLocator, MaxNLocator
from torch import Tensor

from ..figures import COLOURS, SEQUENTIAL

LEVELS, MOST_CELLS = 64, 64
_WIDE, _LOW = 168, 56  # of the cells of a heatmap: width, least height
_PLOT = (320, 190)
_LEFT, _BOTTOM, _TOP, _RIGHT = 44, 34, 8, 8


# --- heatmaps -------------------------------------------------------------------------------------------------------


def heatmap(values: Tensor, highest: float, alternative: str) -> Markup:
    """Cells (rows, columns) from 0 (dark) to `highest` (light), with the first and last number of row i and column j."""
    rows, columns = values.shape
    height = max(_LOW, min(_WIDE, round(_WIDE * rows / columns)))
    cells = base64.b64encode(png(_thinned(values / highest))).decode()
    marks = [_text(20, 12, "1", "end"), _text(24, height + 14, "1", "start")]
    marks += [_text(20, height, str(rows), "end")] * (rows > 1)
    marks += [_text(24 + _WIDE, height + 14, str(columns), "end")] * (columns > 1)
    marks += [_text(20, height / 2 + 6, "i", "end"), _text(24 + _WIDE / 2, height + 14, "j")]
    picture = (
        f'<image x="24" y="0" width="{_WIDE}" height="{height}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{cells}"/>'
    )
    return _svg(_WIDE + 28, height + 18, picture + "".join(marks), alternative)


def colour_bar(highest: float, chance: Sequence[float]) -> Markup:
    """The scale of the heatmaps, with a triangle at the values that random directions have."""
    cells = base64.b64encode(png(torch.linspace(0, 1, LEVELS)[None])).decode()
    parts = [
        f'<image x="10" y="14" width="220" height="12" preserveAspectRatio="none" href="data:image/png;base64,{cells}"/>',
        *(_text(10 + 220 * share, 40, number(share * highest), "middle") for share in (0, 0.5, 1)),
    ]
    for value in chance:
        x = 10 + 220 * min(1.0, value / highest)
        parts.append(f'<path class="mark" d="M{x:.1f} 13l-4 -7h8z"/>')
    marked = f"; chance is marked, {number(min(chance))} to {number(max(chance))}" if chance else ""
    return _svg(240, 46, "".join(parts), f"Colour scale from 0, dark, to {number(highest)}, light{marked}.")


def png(shares: Tensor) -> bytes:
    """Shares (rows, columns) between 0 and 1 as a PNG with a palette of `LEVELS` colours.

    >>> png(torch.zeros(2, 3))[:8]
    b'\\x89PNG\\r\\n\\x1a\\n'
    """
    levels = (shares.nan_to_num(0).clamp(0, 1) * (LEVELS - 1)).round().to(torch.uint8)
    rows, columns = levels.shape
    lines = b"".join(b"\0" + bytes(row) for row in levels.tolist())
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", _palette()), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _palette() -> bytes:
    """The colours of the levels, between those of `SEQUENTIAL`."""
    stops = torch.tensor([to_rgb(colour) for colour in SEQUENTIAL])
    places = torch.linspace(0, len(stops) - 1, LEVELS)
    below = places.long().clamp_max(len(stops) - 2)
    mixed = torch.lerp(stops[below], stops[below + 1], (places - below)[:, None])
    return bytes((255 * mixed).round().to(torch.uint8).flatten().tolist())


def _thinned(values: Tensor) -> Tensor:
    """At most `MOST_CELLS` rows and columns, the first and the last among them."""
    for axis in (0, 1):
        if values.shape[axis] > MOST_CELLS:
            chosen = torch.linspace(0, values.shape[axis] - 1, MOST_CELLS).round().long()
            values = values.index_select(axis, chosen.to(values.device))
    return values


# --- lines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of a plot. points: x and y. dashed, faint: how it is drawn."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False
    faint: bool = False


def colour_of(place: int) -> str:
    """The colour of the adapter at a place, from 0; after seven they are used again.

    >>> colour_of(0) == colour_of(7) != colour_of(1)
    True
    """
    return COLOURS[place % len(COLOURS)]


def plot(lines: Sequence[Line], x: str, y: str, alternative: str, *, log: bool = False, zero: bool = False) -> Markup:
    """Lines over x, with ticks and the names of x and y. log: y on a logarithmic scale, for what is positive.
    zero: y begins at 0."""
    drawn = [[point for point in line.points if _can_be_drawn(point, log)] for line in lines]
    every = [point for points in drawn for point in points]
    xs, ys = _Axis([x for x, _ in every]), _Axis([y for _, y in every] + [0.0] * zero, log)
    width, height = _PLOT
    parts = []
    for value in ys.ticks:
        at = ys.place(value, height - _BOTTOM, _TOP)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{width - _RIGHT}"/>')
        parts.append(_text(_LEFT - 5, at + 4, number(value), "end"))
    for value in xs.ticks:
        parts.append(_text(xs.place(value, _LEFT, width - _RIGHT), height - _BOTTOM + 14, number(value), "middle"))
    for line, points in zip(lines, drawn, strict=True):
        places = [(xs.place(x, _LEFT, width - _RIGHT), ys.place(y, height - _BOTTOM, _TOP)) for x, y in points]
        parts.append(_line(line, places))
    parts.append(_text((_LEFT + width) / 2, height - 4, x, "middle"))
    parts.append(
        f'<text transform="translate(10 {(height - _BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )
    return _svg(width, height, "".join(parts), alternative)


def _can_be_drawn(point: tuple[float, float], log: bool) -> bool:
    return all(map(math.isfinite, point)) and (point[1] > 0 or not log)


def _line(line: Line, places: Sequence[tuple[float, float]]) -> str:
    dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
    title = f"<title>{escape(line.label)}</title>"
    if len(places) == 1:
        x, y = places[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}">{title}</circle>'
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) if places else ""
    kind = "line faint" if line.faint else "line"
    return f'<path class="{kind}" stroke="{line.colour}"{dashes} d="{path}">{title}</path>'


class _Axis:
    """Where values are between two places, and which of them get a number."""

    def __init__(self, values: Sequence[float], log: bool = False):
        low, high = min(values, default=0.1 if log else 0.0), max(values, default=1.0)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        self.log, self.low, self.high = log, low, high
        if log:
            locator: Locator = LogLocator(subs=(1,) if high > 30 * low else (1, 2, 5), numticks=8)
        else:
            locator = MaxNLocator(5, integer=all(value == int(value) for value in values))
        ticks = [float(tick) for tick in locator.tick_values(low, high)]
        self.ticks = [tick for tick in ticks if low <= tick <= high] or [low, high]

    def place(self, value: float, start: float, end: float) -> float:
        """Where `value` is between the places `start` and `end`."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return start + (end - start) * (at - low) / (high - low)


# --- text -----------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits at most.

    >>> number(0.5), number(0.0213), number(12345.0), number(0.00001)
    ('0.5', '0.0213', '12,345', '1e-05')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, content: str, alternative: str) -> Markup:
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alternative)}">{content}</svg>')
