"""Draw every figure again from the recorded results: `python -m benchmarks.figures`. Nothing is measured."""

import sys
from importlib import import_module
from pathlib import Path

from examples.conv_domain_shift import SIZES, TITLE, draw

from benchmarks import conv_domain_shift, e2e, glue, imdb, provenance, report, summary
from benchmarks.command import NAMES, plot_title
from benchmarks.goals import Benchmark
from loralib.cli import guarded


def figures_of_benchmarks() -> list[Path]:
    """The figure of each benchmark whose results are recorded."""
    drawn = []
    for name in NAMES:
        results, path = provenance.RESULTS / f"{name}.csv", provenance.RESULTS / f"{name}.png"
        if results.exists():
            benchmark: Benchmark = import_module(f"benchmarks.{name}").BENCHMARK
            rows = provenance.read_rows(results)
            report.plot(benchmark, rows, path, plot_title(name, rows[0]))
            drawn.append(path)
    return drawn


def main() -> int:
    recorded = {name: provenance.read_rows(provenance.RESULTS / f"{name}.csv") for name in ("glue", "e2e", "imdb")}
    glue.plot(recorded["glue"], glue.FIGURE)
    e2e.plot(recorded["e2e"], e2e.FIGURE)
    imdb.plot(recorded["imdb"], imdb.FIGURE)
    summary.plot(provenance.read_rows(summary.SOURCE), summary.FIGURE)
    shifts = provenance.read_rows(provenance.RESULTS / "conv_domain_shift.csv")
    curves = [
        {**row, "curve": [float(value) for value in row["curve"].split()]} for row in shifts if row["seed"] == shifts[0]["seed"]
    ]
    draw(conv_domain_shift.FIGURE, curves, TITLE.format(f"{SIZES['test']:,} test images"))
    for path in [*figures_of_benchmarks(), glue.FIGURE, e2e.FIGURE, imdb.FIGURE, summary.FIGURE, conv_domain_shift.FIGURE]:
        print(f"Wrote {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
