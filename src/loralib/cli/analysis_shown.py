"""An analysis on the terminal: its summary, and small pictures of how far adapters share their directions."""

import statistics
import textwrap
from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..printing import printable
from ..recipes.learned.drawings import number
from ..recipes.learned.findings import findings, known
from ..recipes.learned.measured import Measured, Pair
from ..recipes.learned.similarity_section import mean, scale, spread
from ..train.rich_text import plain
from .terminal import BLOCKS, say, shown, width

_ROWS, _COLUMNS = 4, 16  # of a small picture
_HEADINGS = ("adapter", "layers", "‖ΔW‖", "99 % in", "amplified", "intruders")  # numbers are medians, but for the last


def show(measured: Measured) -> None:
    """Print the summary, then for each pair a small picture of each role, and a table of the adapters' updates."""
    for found in findings(measured):
        say(printable(found.about))
        for sentence in found.sentences:
            for line in textwrap.wrap(printable(sentence), width(), initial_indent="- ", subsequent_indent="  "):
                say(line)
    console = Console(width=width(), highlight=False)
    for pair in measured.pairs:
        _show_pair(console, measured, pair)
    console.print(_updates(measured))


def _show_pair(console: Console, measured: Measured, pair: Pair) -> None:
    if not (similarity := known(pair)):
        return
    highest = scale(similarity.values())
    console.print()
    console.print(plain(f"φ(i, j) of {pair.a.name} (i, down) and {pair.b.name} (j, across), 0 to {highest:g}"))
    groups = measured.by_role(similarity)
    pictures = [_titled(role, mean([similarity[name].phi for name in names]), highest) for role, names in groups.items()]
    console.print(Columns(pictures, padding=(0, 3)))


def _titled(role: str, phi: Tensor, highest: float) -> Text:
    """A small picture under its title."""
    picture = "\n".join(map(shown, small(phi, highest)))
    return Text.assemble(plain(role), f" φ(1, 1) {float(phi[0, 0]):.2f}\n", picture)


def small(phi: Tensor, highest: float) -> list[str]:
    """φ as a few lines of bars, the first and the last i and j among them; a bar of full height is `highest`."""
    rows, columns = (
        spread([str(place) for place in range(size)], most) for size, most in zip(phi.shape, (_ROWS, _COLUMNS), strict=True)
    )
    cells = [[float(phi[int(i), int(j)]) for j in columns] for i in rows]
    return ["".join(BLOCKS[round(min(1.0, cell / highest) * (len(BLOCKS) - 1))] for cell in row) for row in cells]


def _updates(measured: Measured) -> Table:
    """A row for each adapter and role: how large its updates are, and how many directions they have."""
    rows = []
    for alone in measured.alone:
        for role, names in measured.by_role(alone.spectra).items():
            found = [alone.spectra[name] for name in names if alone.spectra[name].values]
            factors = [alone.amplification[name].factor for name in names if name in alone.amplification]
            intruders = [len(alone.intruders[name]) for name in names if name in alone.intruders]
            numbers = [_middle([one.norm for one in found]), _middle([float(one.rank_at(0.99)) for one in found])]
            numbers += [_middle(factors), f"{sum(intruders)}" if intruders else ""]
            rows.append([alone.subject.name, f"{role} ({len(names)})", *numbers])
    table = Table()
    shown_at = [at for at in range(len(_HEADINGS)) if any(row[at] for row in rows)]
    for at in shown_at:
        table.add_column(shown(_HEADINGS[at]), justify="left" if at < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(plain(row[at]) for at in shown_at))
    return table


def _middle(values: Sequence[float]) -> str:
    """The median; nothing of no values."""
    return number(statistics.median(values)) if values else ""
