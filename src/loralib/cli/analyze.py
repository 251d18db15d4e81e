"""`loralib analyze`: what adapters learned, as numbers, figures and one page: alone, or every two of several."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..choices import Directions, names
from ..errors import ConfigError
from ..printing import printable
from . import files, renaming, runs
from .offline import offline
from .parsing import OneSentenceParser
from .progress import Progress
from .terminal import reporting, say

TITLE = "loralib analyze"


def run(words: Sequence[str]) -> int:
    """Analyze; returns the exit code."""
    parsed = parser().parse_args(words)
    read = [*parsed.adapters, *([parsed.base] if parsed.base else [])]
    if any(path.resolve().is_relative_to(parsed.output.resolve()) for path in read):
        raise ConfigError(f"-o {parsed.output}: that is, or holds, what is read; give another place.")

    from ..storage.swap import check_place, new_folder, sole_writer

    with sole_writer(parsed.output, TITLE):
        check_place(parsed.output, TITLE, parsed.overwrite)
        with reporting(parsed.json) as report:
            with new_folder(parsed.output) as work:
                report.update(_analyze(parsed, work))
            _say_written(parsed.output)
    return 0


def _analyze(parsed: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Compute, write the report into `work`, show its summary, and return its numbers."""
    from ..recipes.learned import measured, report, subjects
    from ..recipes.learned.base import base_weights
    from ..storage.folders import all_files, write_mark
    from . import analysis_shown

    paths = [inner for path in parsed.adapters for inner in runs.runs_in(path)]
    found = subjects.subjects(paths, renaming.renamed_all(files.read_all(paths, parsed), parsed))
    with offline(), Progress("Analyzing") as progress:  # runs name models and data, and nobody asked to fetch those
        base = base_weights(str(parsed.base)) if parsed.base else None
        numbers = measured.measure(found, parsed.of, base, progress=progress.at)
    values = report.write(numbers, work)
    write_mark(work, TITLE, list(all_files(work)))
    analysis_shown.show(numbers)
    return values


def _say_written(output: Path) -> None:
    say(f"Wrote {printable(str(output / 'index.html'))} and, next to it, report.json, tables/ and figures/.")


def parser() -> OneSentenceParser:
    """The parser of this command."""
    made = OneSentenceParser(
        prog=TITLE,
        usage="ADAPTER|RUN ... -o DIR [options]",
        description="Show what adapters learned: how large their updates are and where, how many directions they have, and "
        "which of them every two share. Writes tables, figures and one page that needs no network; with --base also by how "
        "much the updates amplify what the model's weights have.",
        examples=(
            "loralib analyze runs/mine -o learned",
            "loralib analyze runs/r8 runs/r64 --base base-model -o learned",
        ),
    )
    made.add_argument(
        "adapters",
        type=Path,
        nargs="+",
        metavar="ADAPTER|RUN",
        help="adapters in any known format, run folders, or folders of seeds",
    )
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    made.add_argument("--base", type=Path, metavar="MODEL", help="base model: also amplification and intruders")
    made.add_argument(
        "--of",
        choices=names(Directions),
        default="right",
        help="directions to compare: right or left singular vectors of ΔW, or right ones of A (default: right)",
    )
    made.add_argument("--overwrite", action="store_true", help="replace what an earlier analysis wrote to the output folder")
    made.add_argument("--json", action="store_true", help="print the numbers as JSON")
    files.add_reading(made)
    renaming.add(made.add_argument_group("names"))
    return made
