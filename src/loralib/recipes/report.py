"""The table of runs that a person sees at their end."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ..train.measure import share
from ..train.rich_text import plain


def human_bytes(size: float) -> str:
    """A size in the unit that fits it.

    >>> human_bytes(310_000), human_bytes(1_500_000_000)
    ('310 kB', '1.5 GB')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            value = size / scale
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
    return f"{size:.0f} B"


def human_share(share: float) -> str:
    """A share in hundredths, small ones with the digits that they need.

    >>> human_share(1.0), human_share(0.0033), human_share(0.000034)
    ('100.00 %', '0.33 %', '0.003 %')
    """
    return f"{100 * share:.{2 if share >= 0.001 else 3}f} %"


def summary_table(runs: Sequence[dict[str, Any]], title: str | None = None) -> Table:
    """Method, trained parameters and their share, metric, training time, peak memory and size on disk, a line a run.

    runs: what `metrics.json` holds; with "spread", that of the metric over several seeds.
    """
    table = Table(title=None if title is None else plain(title))
    for heading in ("method", "trained", "share", runs[0]["metric"], "time", "memory", "disk"):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for run in runs:
        counts = run["parameters"]
        table.add_row(
            run["method"],
            f"{counts['trained']:,}",
            human_share(share(counts)),
            f"{run['value']:.4f}" + (f" ± {run['spread']:.4f}" if "spread" in run else ""),
            f"{run['train_seconds']:.0f} s",
            human_bytes(run["peak_memory_bytes"]),
            human_bytes(run["saved_bytes"]),
        )
    return table
