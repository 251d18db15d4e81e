"""`loralib info`: show what is in an adapter, without a model."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..printing import printable
from ..storage.json_text import as_json
from . import files, spectra
from .parsing import OneSentenceParser
from .terminal import note, say, width

if TYPE_CHECKING:
    from torch import Tensor

    from ..adapters.adapter import Adapter
    from ..adapters.updates import LoRAUpdate
    from ..analysis.intruders import Intruder
    from ..analysis.spectra import Spectrum

    Intruders = tuple[Intruder, ...]

_LABEL = 12
_LONGEST = 400
_UNBROKEN = "\xa0"  # a space at which no line ends


def run(words: Sequence[str]) -> int:
    """Show; returns the exit code."""
    parsed = parser().parse_args(words)
    read = files.read_guessing(parsed.path, parsed)
    adapter = read.adapter
    intruders = _intruders(adapter, parsed.base)
    found = _spectra(adapter, intruders)
    if parsed.json:
        report = _as_json(read, found, parsed.path)
        for name, of_layer in intruders.items():
            held = report["layers"][_layer(name, adapter)].setdefault("intruders", [])
            held += [dataclasses.asdict(intruder) for intruder in of_layer]
        print(as_json(report))
        return 0
    _show_facts(adapter, found, read.guessed)
    _show_spectra(adapter, found, parsed.all)
    return 0


def parser() -> OneSentenceParser:
    """The parser of this command."""
    parser = OneSentenceParser(
        prog="loralib info",
        usage="PATH [options]",
        description="Show what is in an adapter: format, base model, ranks, targets, counts, and the singular values of each "
        "layer's update.",
        examples=(
            "loralib info my-adapter",
            "loralib info lora.safetensors --json",
            "loralib info my-adapter --base base-model",
        ),
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="adapter in any known format, or run folder")
    parser.add_argument("--all", action="store_true", help="show every layer (default: at most about 24)")
    parser.add_argument("--base", type=Path, metavar="MODEL", help="the base model's folder: also count intruder dimensions")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, with all singular values")
    files.add_reading(parser)
    return parser


def _spectra(adapter: "Adapter", intruders: Mapping[str, "Intruders"]) -> dict[str, "Spectrum"]:
    from ..analysis.spectra import spectrum_of

    counts: dict[str, int] = {}
    for name, of_layer in intruders.items():
        layer = _layer(name, adapter)
        counts[layer] = counts.get(layer, 0) + len(of_layer)
    return {name: spectrum_of(update, counts.get(name)) for name, update in adapter.layers.items()}


def _layer(name: str, adapter: "Adapter") -> str:
    """The layer that `name` is, or is an expert of."""
    return name if name in adapter.layers else name.rpartition(".")[0]


def _intruders(adapter: "Adapter", base: Path | None) -> Mapping[str, "Intruders"]:
    from ..analysis.intruders import intruder_dimensions

    if base is None:
        return {}
    note(f"Decomposing the weights of {len(adapter.layers)} layers …")
    return intruder_dimensions(adapter, base)


def _show_facts(adapter: "Adapter", found: Mapping[str, "Spectrum"], guessed: bool) -> None:
    facts = adapter.facts()
    if guessed:
        facts.pop("scaling", None)
        facts["lora_alpha"] = "not in the file: norms below are those for lora_alpha = r; give the true one with --lora-alpha"
    facts["digest"] = adapter.digest()
    if broken := [f"{name}: {problem}" for name, problem in _problems(adapter).items()]:
        facts["unusable"] = f"{len(broken)} of {len(found) + len(adapter.tensors) + len(adapter.rows)}: {'; '.join(broken)}"
    indent = " " * (_LABEL + 1)
    for what, fact in facts.items():
        text = printable(fact if len(fact) <= _LONGEST else fact[:_LONGEST] + " …")
        text = text.replace(" layer", _UNBROKEN + "layer").replace(" (", _UNBROKEN + "(")
        label = f"{printable(what):<{_LABEL}} "
        for line in textwrap.wrap(
            text, width(), initial_indent=label, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
        ):
            say(line.replace(_UNBROKEN, " "))


def _problems(adapter: "Adapter") -> dict[str, str]:
    """The problems of unusable layers and tensors, by name."""
    from ..adapters.soundness import problems

    return dict(problems(adapter.layers, adapter.tensors, adapter.rows))


def _show_spectra(adapter: "Adapter", found: Mapping[str, "Spectrum"], everything: bool) -> None:
    from ..adapters.summary import last_name

    if not found:
        return
    say("")
    for line in spectra.table(found, last_name, width(), everything):
        say(line)
    say("")
    for line in textwrap.wrap(_legend(adapter, found), width(), break_on_hyphens=False):
        say(line)


def _legend(adapter: "Adapter", found: Mapping[str, "Spectrum"]) -> str:
    notes = [
        "99 %: how many singular values carry 99 % of ‖ΔW‖² (Frobenius).",
        "Spectrum: their sizes, on a log scale down to 1/100 of the layer's largest.",
    ]
    if any(update.is_dora for update in adapter.layers.values()):
        notes.append("Of DoRA: of s·B·A; what the update adds depends on W.")
    if any(spectrum.intruders is not None for spectrum in found.values()):
        notes.append("Intruders: of the ten leading singular vectors of W + ΔW, those that are far from all of W's.")
    return " ".join(notes)


def _as_json(read: files.Read, found: Mapping[str, "Spectrum"], path: Path) -> dict[str, Any]:
    adapter = read.adapter
    return {
        "path": str(path),
        "format": read.format,
        "source": adapter.source,
        "digest": adapter.digest(),
        "parameters": adapter.num_parameters(),
        "bytes": sum(tensor.nbytes for tensor in adapter.all_tensors()),
        "lora_alpha_is_known": not read.guessed,
        "config": adapter.config.to_dict(),
        "metadata": dict(adapter.metadata),
        "unusable": _problems(adapter),
        "layers": {name: _layer_as_json(update, found[name]) for name, update in adapter.layers.items()},
        "tensors": {name: _tensor_as_json(tensor) for name, tensor in adapter.tensors.items()},
        "rows": {n: {"indices": list(rows.indices), **_tensor_as_json(rows.values)} for n, rows in adapter.rows.items()},
    }


def _layer_as_json(update: "LoRAUpdate", spectrum: "Spectrum") -> dict[str, Any]:
    finite = spectrum.values is not None
    return {
        "kind": update.kind,
        "r": update.r,
        "lora_alpha": update.lora_alpha,
        "use_rslora": update.use_rslora,
        "use_dora": update.is_dora,
        "scaling": update.scaling,
        **{part: _tensor_as_json(tensor) for part, tensor in update.tensors().items()},
        **dict(update.own_fields()),
        "norm": spectrum.norm if finite else None,
        "rank_at_99_percent": spectrum.rank_at(spectra.ENERGY) if finite else None,
        "stable_rank": spectrum.stable_rank if finite else None,
        "effective_rank": spectrum.effective_rank if finite else None,
        "singular_values": list(spectrum.values or ()) if finite else None,
    }


def _tensor_as_json(tensor: "Tensor") -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
