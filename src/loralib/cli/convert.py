"""`loralib convert`: write an adapter in another format, with changes (a part, a lower rank, another dtype) on the way."""

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import choices
from ..errors import AlgebraError, ConfigError, FormatError
from ..printing import printable
from . import files, outputs, renaming
from .parsing import OneSentenceParser
from .terminal import note, reporting, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..adapters.adapter import Adapter

EXPERTS = ("together", "apart")
DTYPES = ("float32", "float16", "bfloat16")
EXTRAS = {"tensors": "tensors trained in full", "rows": "token rows", "metadata": "metadata"}
REFUSED = {
    "diffusers": ("tensors", "rows", "metadata"),
    "kohya": ("tensors", "rows", "metadata"),
    "loralib": ("rows", "metadata"),
}
REFUSED_WITH_KEYS = ("rows", "metadata")


def run(words: Sequence[str]) -> int:
    """Convert; returns the exit code."""
    parsed = parser().parse_args(words)
    if bool(parsed.format) == bool(parsed.out_keys):
        raise ConfigError("--format FORMAT or --out-keys FILE.json says what to write; give one of them.")
    if (parsed.reduce_intruders is None) != (parsed.base is None):
        raise ConfigError("--reduce-intruders KEEP and --base BASE go together; give both, or neither.")
    format = parsed.format or "safetensors"
    with outputs.free_output(parsed.output, format, parsed.overwrite, [parsed.path]):
        with reporting(parsed.json) as report:
            report.update(files.report_of(_convert(parsed, format), parsed.output, format))
        return 0


def _convert(parsed: argparse.Namespace, format: str) -> "Adapter":
    out_keys = files.read_keys(parsed.out_keys) if parsed.out_keys else None
    adapter = files.read(parsed.path, parsed)
    say(f"Read {files.described(adapter)}.")
    adapter = _changed(adapter, parsed)
    _check_held(adapter, parsed.format)
    files.write(adapter, parsed.output, format, out_keys, layout=parsed.to_layout)
    _say_lost(adapter, parsed.format)
    return adapter


def parser() -> OneSentenceParser:
    """The parser of this command."""
    parser = OneSentenceParser(
        prog="loralib convert",
        usage="PATH -o OUT (--format NAME | --out-keys FILE) [options]",
        description="Write an adapter in another format. If the format cannot hold all of it, that is an error and nothing is "
        "written.",
        examples=(
            "loralib convert my-adapter -o mine.safetensors --format safetensors",
            "loralib convert kohya.safetensors -o my-adapter --format peft --part unet",
            "loralib convert runs/mine -o small --format peft --r 4 --dtype bfloat16",
        ),
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="adapter in any known format, or run folder")
    files.add_reading(parser)
    files.add_writing(parser, format=None).add_argument(
        "--out-keys",
        type=Path,
        metavar="FILE",
        help="instead of --format: custom names, by a JSON map {regular expression of <layer>.lora_A ...: name}",
    )
    parser.add_argument(
        "--to-layout",
        choices=choices.names(choices.ExpertLayout),
        help="how experts lie in PEFT's folder, as for --layout (default: rank-major)",
    )
    change = parser.add_argument_group("changes")
    change.add_argument("--part", metavar="MODULE", help="keep only what lies in this module, such as unet")
    renaming.add(change)
    change.add_argument("--without", action="append", default=[], choices=EXTRAS, help="leave out what the format cannot hold")
    change.add_argument(
        "--experts", choices=EXPERTS, help="one update for all experts of a Parameter, or updates of each expert's layers"
    )
    change.add_argument(
        "--interleaved", action="store_true", help="for --experts: rows of gate and up alternate, as in gpt-oss"
    )
    change.add_argument("--r", type=int, metavar="N", help="truncate to rank N by SVD")
    change.add_argument(
        "--energy", type=float, metavar="E", help="truncate to the smallest ranks that keep this fraction of ‖ΔW‖²_F"
    )
    change.add_argument("--dtype", choices=DTYPES, help="round all tensors to this dtype")
    change.add_argument(
        "--reduce-intruders",
        type=float,
        metavar="P",
        help="keep this fraction of the intruder dimensions; adds a rank for each, needs --base",
    )
    change.add_argument("--base", type=Path, metavar="MODEL", help="the base model's folder, for --reduce-intruders")
    return parser


def _changed(adapter: "Adapter", parsed: argparse.Namespace) -> "Adapter":
    if parsed.part is not None:
        adapter = adapter.part(parsed.part)
        say(f"Took the part {printable(parsed.part)}: {files.described(dataclasses.replace(adapter, source=''))}.")
    adapter = renaming.renamed(adapter, parsed)
    if parsed.experts:
        adapter = _experts(adapter, parsed.experts, parsed.interleaved)
    elif parsed.interleaved:
        raise ConfigError("--interleaved says how --experts together or apart is done; give it as well.")
    if parsed.without:
        adapter = _without(adapter, parsed.without)
    if parsed.reduce_intruders is not None:
        adapter = _reduced(adapter, parsed.base, parsed.reduce_intruders)
    if parsed.r is not None or parsed.energy is not None:
        adapter = _truncated(adapter, parsed.r, parsed.energy)
    if parsed.dtype:
        adapter = _rounded(adapter, parsed.dtype)
    return adapter


def _experts(adapter: "Adapter", form: str, interleaved: bool) -> "Adapter":
    from ..adapters.expert_forms import split_experts, stack_experts

    changed = (stack_experts if form == "together" else split_experts)(adapter, interleaved)
    if changed.layers.keys() == adapter.layers.keys():
        other = next(known for known in EXPERTS if known != form)
        raise ConfigError(f"--experts {form}: the adapter has no experts that are {other}.")
    say(f"Experts {form} now: {len(changed.layers)} layers in place of {len(adapter.layers)}.")
    return changed


def _check_held(adapter: "Adapter", format: str | None) -> None:
    """Raise `FormatError`, which names the option to use, for what the format cannot hold. None: custom names."""
    refused = REFUSED.get(format, ()) if format else REFUSED_WITH_KEYS
    if held := [kind for kind in refused if getattr(adapter, kind)]:
        what = " and ".join(f"{EXTRAS[kind]} ({_listed(getattr(adapter, kind))})" for kind in held)
        raise FormatError(
            f"{format or 'a file with names of its own'} has no place for {what}; leave them out with "
            f"{' '.join(f'--without {kind}' for kind in held)}, or choose --format safetensors. Nothing was written."
        )


def _say_lost(adapter: "Adapter", format: str | None) -> None:
    """Print what the format does not store."""
    if format == "loralib":
        alphas = ", ".join(f"{alpha:g}" for alpha in {update.lora_alpha for update in adapter.layers.values()})
        say(f"Not in this format, to be given again on reading: lora_alpha ({alphas}).")


def _listed(names: Iterable[str]) -> str:
    """Some of the names."""
    first, *more = list(names)
    return f"{first} and {len(more)} more" if len(more) > 1 else ", ".join([first, *more])


def _without(adapter: "Adapter", what: Sequence[str]) -> "Adapter":
    kinds = [kind for kind in EXTRAS if kind in what]
    left_out = [f"{EXTRAS[kind]} ({_listed(held)})" if (held := getattr(adapter, kind)) else f"no {kind}" for kind in kinds]
    say(f"Left out: {printable(', '.join(left_out))}.")
    if "tensors" in kinds:
        settings = dataclasses.replace(adapter.settings, modules_to_save=(), bias="none")
        adapter = dataclasses.replace(adapter, config=settings, tensors={})
    return dataclasses.replace(
        adapter, rows={} if "rows" in kinds else adapter.rows, metadata={} if "metadata" in kinds else adapter.metadata
    )


def _reduced(adapter: "Adapter", base: Path, keep: float) -> "Adapter":
    from ..analysis.intruders import reduce_intruder_dimensions

    note(f"Decomposing the weights of {len(adapter.layers)} layers …")
    reduced = reduce_intruder_dimensions(adapter, base, keep=keep)
    added = [reduced.layers[name].r - update.plain().r for name, update in adapter.layers.items()]
    counts = [count for count in added if count > 0]
    say(f"Kept {keep:g} of {sum(counts)} intruder dimensions in {len(counts)} of {len(added)} layers.")
    return reduced


def _truncated(adapter: "Adapter", r: int | None, energy: float | None) -> "Adapter":
    """The adapter truncated to lower ranks; prints which, and the fraction of ‖ΔW‖²_F kept."""
    from ..adapters.algebra import spectrum

    cut = adapter.truncate(r, energy)
    ranks = {name: (update.r, cut.layers[name].r) for name, update in adapter.layers.items()}
    changed = [name for name, (before, after) in ranks.items() if after < before]
    if not changed:
        say("Truncated nothing: no layer has a higher rank.")
        return cut
    before, after = (
        {name: float(spectrum(update).square().sum()) for name, update in layers.items()}
        for layers in (adapter.layers, cut.layers)
    )
    kept = {name: after[name] / before[name] if before[name] else 1.0 for name in ranks}
    share = sum(after.values()) / (sum(before.values()) or 1.0)
    worst = min(kept, key=kept.__getitem__)
    old, new = (_range([ranks[name][i] for name in changed]) for i in (0, 1))
    say(
        f"Truncated {len(changed)} of {len(ranks)} layers from rank {old} to {new}: {100 * share:.2f} % of ‖ΔW‖² is kept, "
        f"{100 * kept[worst]:.2f} % in the worst ({printable(worst)})."
    )
    return cut


def _range(ranks: Sequence[int]) -> str:
    return f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)}…{max(ranks)}"


def _rounded(adapter: "Adapter", dtype: str) -> "Adapter":
    """The adapter in another dtype; prints the largest rounding error. Raises `AlgebraError` if a number overflows."""
    import torch

    rounded = adapter.to(dtype=getattr(torch, dtype))
    worst, where = 0.0, ""
    for (name, before), (_, after) in zip(_named(adapter), _named(rounded), strict=True):
        if not bool(after.isfinite().all()) and bool(before.isfinite().all()):
            raise AlgebraError(
                f"{name} has numbers up to {float(before.abs().max()):.3g}, too large for {dtype}; choose bfloat16 or float32."
            )
        exact = before.double()
        if (error := float((after.double() - exact).norm() / (exact.norm() or 1.0))) > worst:
            worst, where = error, name
    lost = f"the largest relative rounding error of a tensor is {worst:.1e} ({where})" if worst else "exactly"
    say(f"In {dtype} now: {printable(lost)}.")
    return rounded


def _named(adapter: "Adapter") -> Iterator[tuple[str, "Tensor"]]:
    """Every tensor of floating-point numbers, by a name."""
    everything: dict[str, Tensor] = {}
    for name, update in adapter.layers.items():
        everything |= {f"{name}.{part}": tensor for part, tensor in update.tensors().items()}
    everything |= dict(adapter.tensors) | {f"rows of {name}": rows.values for name, rows in adapter.rows.items()}
    return ((name, tensor) for name, tensor in everything.items() if tensor.is_floating_point())
