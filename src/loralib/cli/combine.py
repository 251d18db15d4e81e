"""`loralib combine`: a weighted sum of adapters, exactly or at a lower rank."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import choices
from ..architectures import short_name
from ..errors import ConfigError
from . import files, outputs
from .parsing import OneSentenceParser
from .terminal import reporting, say, warn

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter
    from ..adapters.updates import LoRAUpdate

ROUNDING = 1e-12  # of float32, squared and then some
METHODS = choices.names(choices.CombineMethod)


def run(words: Sequence[str]) -> int:
    """Combine; returns the exit code."""
    parsed = parser().parse_args(words)
    if parsed.weights is not None and len(parsed.weights) != len(parsed.adapters):
        raise ConfigError(f"--weights gives {len(parsed.weights)} for {len(parsed.adapters)} adapters; give one to each.")
    with outputs.free_output(parsed.output, parsed.format, parsed.overwrite, parsed.adapters):
        with reporting(parsed.json) as report:
            report.update(files.report_of(_combine(parsed), parsed.output, parsed.format))
        return 0


def _combine(parsed: argparse.Namespace) -> "Adapter":
    adapters = files.read_all(parsed.adapters, parsed)
    weights = parsed.weights or [1.0] * len(adapters)
    for adapter, weight in zip(adapters, weights, strict=True):
        say(f"{weight:>8g} * {files.described(adapter)}")

    from ..adapters.combine import combine

    options = {name: getattr(parsed, name) for name in ("r", "energy", "density", "seed", "majority_sign", "tensors")}
    combined = combine(adapters, weights, parsed.method, **options)
    say(f"{'=':>8}   {files.described(combined)}{_kept(adapters, weights, combined, parsed.method)}")
    files.write(combined, parsed.output, parsed.format)
    _warn_of_bases(parsed.adapters, adapters)
    return combined


def _warn_of_bases(paths: Sequence[Path], adapters: Sequence["Adapter"]) -> None:
    """Warn of adapters for different base models; a model's folder and its name on the hub are the same one."""
    found: dict[str, str] = {}
    for path, adapter in zip(paths, adapters, strict=True):
        if base := str(adapter.metadata.get("base_model_name_or_path") or ""):
            found.setdefault(_name_of(base), f"{base} ({path.name})")
    if len(found) > 1:
        warn(f"the adapters are for different base models: {' and '.join(found.values())}; their sum may suit none of them.")


def _name_of(base: str) -> str:
    cached = re.search(r"models--[^/]*--([^/]+)/snapshots/", base)
    return short_name(cached[1] if cached else base)


def parser() -> OneSentenceParser:
    """The parser of this command."""
    parser = OneSentenceParser(
        prog="loralib combine",
        usage="ADAPTER ADAPTER ... -o OUT [options]",
        description="Add up adapters: exactly (the ranks add up), to a lower rank (svd), or after pruning ΔW (magnitude, dare, "
        "ties, dare_ties). Extra tensors, such as heads, must be equal unless --tensors says otherwise.",
        examples=(
            "loralib combine one two --weights 0.7 0.3 -o both",
            "loralib combine tuned other --weights 1 -0.5 --tensors first -o less",
            "loralib combine one two --method ties --density 0.2 --r 16 -o both",
        ),
    )
    parser.add_argument(
        "adapters", type=Path, nargs="+", metavar="ADAPTER", help="adapters in any known format, or run folders"
    )
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="one per adapter, may be negative (default: all 1)"
    )
    parser.add_argument(
        "--method", choices=METHODS, default="exact", metavar="NAME", help=", ".join(METHODS) + " (default: exact)"
    )
    parser.add_argument(
        "--r", type=int, metavar="N", help="rank of the result (default: the largest for svd, the sum of the ranks for pruning)"
    )
    parser.add_argument("--energy", type=float, metavar="E", help="smallest ranks that keep this fraction of ‖ΔW‖²_F")
    parser.add_argument("--density", type=float, metavar="D", help="fraction of the entries of ΔW that pruning keeps")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of dare (default: 0)")
    parser.add_argument(
        "--majority-sign",
        choices=choices.names(choices.MajoritySign),
        default="total",
        help="how ties elects the sign of an entry (default: total)",
    )
    parser.add_argument(
        "--tensors",
        choices=choices.names(choices.ExtraTensors),
        default="same",
        help="extra tensors: must be equal (default: same), those of the first adapter, averaged, or dropped",
    )
    files.add_reading(parser)
    files.add_writing(parser)
    return parser


def _kept(adapters: list["Adapter"], weights: Sequence[float], combined: "Adapter", method: str) -> str:
    """The fraction of the exact sum's ‖ΔW‖²_F that a lower rank keeps, as the end of a sentence."""
    if method != "svd":
        return ""
    from ..adapters.algebra import added
    from ..adapters.sums import terms_by_layer

    terms_of = terms_by_layer([adapter.layers for adapter in adapters], weights)
    whole = sum(_energy(added(terms)) for _, terms in terms_of)
    parts = sum(_energy(update) * weight**2 for _, terms in terms_of for update, weight in terms)
    if whole <= ROUNDING * parts:
        return "; the sum is zero up to rounding"
    rest = sum(_energy(update) for update in combined.layers.values())
    return f"; {min(1.0, rest / whole):.2%} of the exact sum's ‖ΔW‖² is kept"


def _energy(update: "LoRAUpdate") -> float:
    """‖ΔW‖² of an update."""
    from ..adapters.algebra import spectrum

    return float(spectrum(update).double().square().sum())
