"""Output to a terminal without further packages: its encoding, its width, small pictures."""

import itertools
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from ..printing import printable
from ..storage.json_text import as_json

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", ".:-=+*%#"
_DECADES = 2
_INSTEAD = str.maketrans(
    {"Δ": "d", "‖": "||", "√": "sqrt ", "…": "...", "·": "*", "²": "^2", "±": "+-"} | dict(zip(BLOCKS, ASCII, strict=True))
)


def shown(text: str) -> str:
    """The text, in ASCII if standard output cannot encode it."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return in_ascii(text)
    return text


def in_ascii(text: str) -> str:
    """The text in ASCII: common signs by others, the rest escaped.

    >>> in_ascii("‖ΔW‖² é")
    '||dW||^2 \\\\xe9'
    """
    return text.translate(_INSTEAD).encode("ascii", "backslashreplace").decode("ascii")


def say(text: str) -> None:
    """Print a line."""
    print(shown(text))


def warn(text: str) -> None:
    """Print a warning to standard error."""
    print(f"loralib: warning: {printable(text)}", file=sys.stderr)


def say_loading(model: str) -> None:
    """Print what the first seconds of a run are for (in the first of several processes)."""
    if os.environ.get("RANK", "0") == "0":
        say(printable(f"Loading libraries, data and {model} …"))
        sys.stdout.flush()


@contextmanager
def reporting(in_json: bool) -> Iterator[dict[str, Any]]:
    """Context manager: a report, to be filled in the block.

    in_json: standard output gets the report as one JSON object, at the end, and nothing else; what the block prints goes to
    standard error.
    """
    report: dict[str, Any] = {}
    with redirect_stdout(sys.stderr) if in_json else nullcontext():
        yield report
    if in_json and os.environ.get("RANK", "0") == "0":
        print(as_json(report))


def note(text: str) -> None:
    """Print to standard error what takes a while, on a terminal only."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def width() -> int:
    """The number of columns: from COLUMNS, the terminal, or 80."""
    return max(40, shutil.get_terminal_size().columns)


def sparkline(values: Sequence[float], columns: int) -> str:
    """Descending `values` as bars on a logarithmic scale: the highest is the first value, the lowest a hundredth of it or less.
    Where there are more values than `columns`, a bar is the geometric mean of neighbours.

    >>> sparkline([1.0, 0.5, 0.1, 0.0], 8), sparkline([1.0, 0.5, 0.1, 0.0], 2)
    ('█▇▅▁', '▇▃')
    """
    if not values or values[0] <= 0:
        return BLOCKS[0] * min(len(values), columns)
    shares = [max(value / values[0], 10.0**-_DECADES) for value in values]
    heights = [1 + math.log10(share) / _DECADES for share in shares]  # 0 … 1
    bars = min(len(heights), columns)
    edges = [i * len(heights) // bars for i in range(bars + 1)]
    means = [sum(heights[start:end]) / (end - start) for start, end in itertools.pairwise(edges)]
    return "".join(BLOCKS[round(mean * (len(BLOCKS) - 1))] for mean in means)
