"""`loralib merge`: merge an adapter into a model's files."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..choices import TiedWeights, names
from ..errors import ConfigError
from ..printing import printable
from . import FAILED, complain, files, renaming, runs
from .parsing import OneSentenceParser
from .progress import Progress
from .terminal import reporting, say

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter
    from ..checkpoints.merge import MergeReport
    from ..checkpoints.verify import Checked


def run(words: Sequence[str]) -> int:
    """Merge; returns the exit code."""
    parsed = parser().parse_args(words)
    if any(path.resolve().is_relative_to(parsed.output.resolve()) for path in (parsed.base, parsed.adapter)):
        raise ConfigError(f"-o {parsed.output}: that is, or holds, what is read; give another place.")
    if parsed.threads is not None and parsed.threads < 1:
        raise ConfigError(f"--threads {parsed.threads}: must be 1 or more.")
    labels = parsed.labels.split(",") if parsed.labels else runs.labels_of(parsed.adapter)
    try:
        with reporting(parsed.json) as report:
            report.update(asdict(_merge(parsed, labels)) | {"path": str(parsed.output)})
    except _CheckError as error:
        return complain(str(error), FAILED)
    return 0


def _merge(parsed: argparse.Namespace, labels: list[str] | None) -> "MergeReport":
    adapter = renaming.renamed(files.read(parsed.adapter, parsed), parsed)
    say(f"Read {files.described(adapter)}.")

    from ..checkpoints.merge import merge_checkpoint

    began = time.monotonic()
    checked: list[Checked] = []

    def check(folder: Path) -> None:
        checked.append(_checked(parsed.base, adapter, folder, parsed.tied))

    with Progress("Merging") as progress:
        report = merge_checkpoint(
            parsed.base,
            adapter,
            parsed.output,
            tied=parsed.tied,
            labels=labels,
            threads=parsed.threads,
            overwrite=parsed.overwrite,
            progress=progress.at,
            check=check if parsed.check else None,
        )
    seconds = time.monotonic() - began
    say(f"Merged {report.layers} layers into {report.tensors} of the model's tensors, in {seconds:.1f} s.")
    if report.added:
        say(f"Added {printable(', '.join(report.added))}.")
    if report.untied:
        say("The output layer is stored apart from the embedding now, and config.json says so.")
    if report.architecture:
        say(f"The result is a {printable(report.architecture)}, and config.json says so.")
    if report.left_out:
        say(f"Left out, as they hold no part of the merged model: {printable(', '.join(report.left_out))}.")
    for found in checked:
        say(f"Checked {found.numbers:,} numbers of {found.tensors} tensors: all within rounding.")
    count = f"{report.files} file{'' if report.files == 1 else 's'} of weights"
    say(f"Wrote {printable(str(report.path))} ({count}, {report.nbytes:,} bytes).")
    return report


def parser() -> OneSentenceParser:
    """The parser of this command."""
    parser = OneSentenceParser(
        prog="loralib merge",
        usage="BASE ADAPTER -o DIR [options]",
        description="Merge an adapter into a model's files, in blocks: no model is built, and no weight is in memory as a "
        "whole. The result is a folder that transformers loads. To merge several adapters, combine them first.",
        examples=(
            "loralib merge base-model my-adapter -o merged-model",
            "loralib merge base-model runs/mine -o merged-model --check",
        ),
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="the base model's folder, or file of weights")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="adapter in any known format, or run folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier merge wrote to the output folder")
    parser.add_argument(
        "--check", action="store_true", help="before the result is in place, recompute a sample in float64 and compare"
    )
    parser.add_argument(
        "--tied",
        choices=names(TiedWeights),
        default="refuse",
        help="if an adapted embedding is shared with the output layer: refuse (default), or store both",
    )
    parser.add_argument(
        "--labels",
        metavar="NAMES",
        help="names of the classes, if the adapter holds a head: negative,positive (default: the run's)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="number of threads (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    files.add_reading(parser)
    renaming.add(parser.add_argument_group("names"))
    return parser


class _CheckError(Exception):
    """The merged model is wrong."""


def _checked(base: Path, adapter: "Adapter", folder: Path, tied: TiedWeights) -> "Checked":
    """Check the merged model in `folder`. Raises `_CheckError` unless it is right up to rounding."""
    from ..checkpoints.verify import check_merged

    checked = check_merged(base, adapter, folder, tied=tied)
    if checked.worst > 1:
        raise _CheckError(
            f"{checked.where!r} is off by {checked.worst:.1f} times what rounding allows, so the result was removed; check the "
            "disk and the memory, and report this."
        )
    return checked
