"""`loralib extract`: an adapter from the difference of two models' files."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..printing import printable
from ..storage.json_text import as_json
from . import files, outputs
from .parsing import OneSentenceParser
from .progress import Progress
from .terminal import say

if TYPE_CHECKING:
    from ..checkpoints.difference import Found

SHOWN = 5


def run(words: Sequence[str]) -> int:
    """Extract; returns the exit code."""
    parsed = parser().parse_args(words)
    if parsed.r is None and parsed.energy is None:
        raise ConfigError("give --r, the rank of the updates, or --energy, the fraction of ‖ΔW‖² to keep, such as 0.99.")
    with outputs.free_output(parsed.output, parsed.format, parsed.overwrite, [parsed.tuned, parsed.base]):
        return _extract(parsed)


def _extract(parsed: argparse.Namespace) -> int:
    from ..checkpoints.difference import as_adapter, differences

    looked = differences(
        parsed.tuned,
        parsed.base,
        parsed.r,
        parsed.energy,
        target_modules=_names(parsed.target_modules),
        exclude_modules=_names(parsed.exclude_modules) or (),
    )
    found = list(_shown(looked))
    adapter = as_adapter(found, f"the difference of {parsed.tuned} and {parsed.base}")
    if parsed.json:
        print(as_json({"layers": [_row(item) for item in found if item.update], "in_full": sorted(adapter.tensors)}))
    else:
        _report(found, files.described(adapter))
    files.write(adapter, parsed.output, parsed.format, quiet=parsed.json)
    return 0


def parser() -> OneSentenceParser:
    """The parser of this command."""
    parser = OneSentenceParser(
        prog="loralib extract",
        usage="TUNED BASE -o OUT (--r N | --energy E) [options]",
        description="Make an adapter from what fine-tuning changed, by an SVD of the difference of each weight. Biases, norms "
        "and new heads that differ are copied in full. Builds no model.",
        examples=(
            "loralib extract tuned-model base-model --r 16 -o difference",
            "loralib extract tuned-model base-model --energy 0.99 -o difference",
        ),
    )
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="the fine-tuned model's folder, or file of weights")
    parser.add_argument("base", type=Path, metavar="BASE", help="the base model's folder, or file of weights")
    parser.add_argument("--r", type=int, metavar="N", help="rank of the updates")
    parser.add_argument("--energy", type=float, metavar="E", help="smallest ranks that keep this fraction of ‖ΔW‖²_F")
    parser.add_argument("--target-modules", metavar="NAMES", help="layers that get updates: query,value (default: all)")
    parser.add_argument("--exclude-modules", metavar="NAMES", help="layers to skip; where they differ, they are copied in full")
    files.add_writing(parser)
    return parser


def _names(text: str | None) -> list[str] | None:
    return [name for name in text.split(",") if name] if text else None


def _shown(found: Iterable["Found"]) -> Iterator["Found"]:
    """The items of `found`, with a progress bar."""
    with Progress("Comparing") as progress:
        for item in found:
            progress.at(item.done, item.total)
            yield item


def _row(item: "Found") -> dict[str, Any]:
    return {"layer": item.name, "r": item.update.r if item.update else None, "kept": item.kept, "norm": item.norm}


def _report(found: list["Found"], described: str) -> None:
    layers = [item for item in found if item.update]
    norm, kept = sum(item.norm**2 for item in layers), sum(item.kept * item.norm**2 for item in layers)
    say(f"Found {printable(described)}.")
    say(f"The updates keep {kept / norm:.2%} of what differs in their layers, by ‖ΔW‖². Those that keep least:")
    width = max(len(printable(item.name)) for item in layers)
    for item in sorted(layers, key=lambda item: item.kept)[:SHOWN]:
        assert item.update
        say(f"  {printable(item.name):<{width}}  r {item.update.r:>4}  ‖ΔW‖ {item.norm:<9.3g} kept {item.kept:.2%}")
    if full := [item.name for item in found if item.tensor is not None]:
        more = f" and {len(full) - SHOWN} more" if len(full) > SHOWN else ""
        say(f"Taken over in full: {printable(', '.join(full[:SHOWN]))}{more}.")
