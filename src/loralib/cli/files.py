"""Shared by the commands on adapter files: reading an adapter in any format, and writing one."""

import argparse
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import choices, expressions
from ..errors import AlgebraError, ConfigError, FormatError
from ..printing import printable
from . import outputs, runs
from .terminal import say

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter
    from ..formats import AdapterFile

FORMATS = choices.names(choices.AdapterFormat)
READ_FORMATS = choices.names(choices.ReadFormat)
_SILENT = {"loralib", "mlx", "peft-file", None}  # formats that need not say lora_alpha; None: custom names


# --- reading --------------------------------------------------------------------------------------------------------


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options for reading an adapter."""
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--from", dest="from_", choices=READ_FORMATS, metavar="FORMAT", help=f"{', '.join(READ_FORMATS)} (default: detect)"
    )
    group.add_argument(
        "--lora-alpha",
        type=float,
        metavar="X",
        help="lora_alpha, if the files do not say it (loralib 0.1, PEFT without config)",
    )
    group.add_argument(
        "--enable-lora",
        type=mask,
        metavar="LIST",
        help="loralib 0.1: slices of fused projections that have factors, such as true,false,true",
    )
    group.add_argument(
        "--layout",
        choices=choices.names(choices.ExpertLayout),
        help="how experts lie in PEFT's folder, if it does not say it; exchanged: PEFT 0.17, 0.18",
    )
    group.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help="custom names: a JSON map {regular expression: replacement} to <layer>.lora_A, .lora_B, .alpha",
    )


def mask(text: str) -> tuple[bool, ...]:
    """The truth values in `text`.

    >>> mask("true,false,1")
    (True, False, True)
    """
    known = {"true": True, "1": True, "false": False, "0": False}
    words = [word.strip().lower() for word in text.split(",")]
    if any(word not in known for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of truth values; write true,false,true")
    return tuple(known[word] for word in words)


@dataclasses.dataclass(frozen=True)
class Read:
    """An adapter that was read. format: its format; None for custom names. guessed: lora_alpha is unknown and was set to r."""

    adapter: "Adapter"
    format: str | None
    guessed: bool


def read(path: Path, parsed: argparse.Namespace) -> "Adapter":
    """The adapter at `path`, read with the options in `parsed`.

    Raises `ConfigError` for options that are missing, or that say what the file says itself; `FormatError` when it cannot be
    read.
    """
    return read_all([path], parsed)[0]


def read_guessing(path: Path, parsed: argparse.Namespace) -> Read:
    """Like `read`, with lora_alpha = r if neither the files nor the options state it."""
    return _read_all([path], parsed, guess=True)[0]


def read_all(paths: Sequence[Path], parsed: argparse.Namespace) -> list["Adapter"]:
    """The adapters at `paths`. The options apply to those files that do not state the value themselves. Raises `AlgebraError`
    for an unusable adapter."""
    adapters = [found.adapter for found in _read_all(paths, parsed, guess=False)]
    for path, adapter in zip(paths, adapters, strict=True):
        _check_sound(str(path), adapter)
    return adapters


def _check_sound(where: str, adapter: "Adapter") -> None:
    from ..adapters.soundness import problems

    for name, problem in problems(adapter.layers, adapter.tensors, adapter.rows):
        raise AlgebraError(f"{where}: {name!r} is unusable: {problem}. Nothing was written.")


def _read_all(paths: Sequence[Path], parsed: argparse.Namespace, guess: bool) -> list[Read]:
    from .. import formats

    if parsed.keys and parsed.from_:
        raise ConfigError("--from names a known format, and --keys is for files of none; give one of them.")
    paths = [runs.adapter_in(path) for path in paths]
    files = [None if parsed.keys else formats.open(path, parsed.from_) for path in paths]
    _check_options(paths[0], {file.format if file else None for file in files}, parsed)
    return [_read(path, file, parsed, guess) for path, file in zip(paths, files, strict=True)]


def _check_options(path: Path, formats: Collection[str | None], parsed: argparse.Namespace) -> None:
    if parsed.enable_lora and "loralib" not in formats:
        raise ConfigError(f"--enable-lora is for checkpoints of loralib 0.1, and {path} is none; leave it out.")
    if parsed.lora_alpha is not None and not _SILENT.intersection(formats):
        raise ConfigError(f"--lora-alpha is for files that do not say it, and {path} says its own; leave it out.")


def _read(path: Path, file: "AdapterFile | None", parsed: argparse.Namespace, guess: bool) -> Read:
    from .. import formats
    from ..config import LoRAConfig

    format, config = file.format if file else None, None
    silent = parsed.lora_alpha is None and format in ("loralib", "peft-file")
    if silent and guess:
        config = LoRAConfig(lora_alpha=1, enable_lora=parsed.enable_lora or ())
    elif parsed.lora_alpha is not None and format in _SILENT:
        config = LoRAConfig(lora_alpha=_whole(parsed.lora_alpha), enable_lora=parsed.enable_lora or ())
    adapter = file.read(config, parsed.layout) if file else formats.load(path, config=config, keys=read_keys(parsed.keys))
    if silent:
        layers = {name: dataclasses.replace(update, lora_alpha=update.r) for name, update in adapter.layers.items()}
        adapter = dataclasses.replace(adapter.with_layers(layers), source=adapter.source)
    return Read(adapter, format, silent)


def _whole(number: float) -> float:
    return int(number) if number.is_integer() else number


def read_keys(path: Path) -> dict[str, str]:
    """The key map in the JSON file `path`."""
    from ..storage.atomic import read_json

    keys = read_json(path)
    if not keys or not all(isinstance(replacement, str) for replacement in keys.values()):
        raise FormatError(f"{path} is not a key map; expected a JSON object {{regular expression: replacement}}, both texts.")
    for expression in keys:
        if problem := expressions.problem(expression):
            raise FormatError(f"{path}: {expression!r:.80} {problem}; write simpler expressions.")
    return keys


def described(adapter: "Adapter") -> str:
    """An adapter in one line.

    >>> from loralib import Adapter, LoRAConfig
    >>> described(Adapter(LoRAConfig(), {}, source="kohya file a.safetensors"))
    'kohya file a.safetensors: 0 layers, 0 parameters, 0 extra tensors'
    """
    from ..adapters.summary import line

    return printable(f"{adapter.source}: " * bool(adapter.source) + line(adapter.layers, adapter.tensors, adapter.rows))


# --- writing --------------------------------------------------------------------------------------------------------


def add_writing(parser: argparse.ArgumentParser, format: str | None = "peft") -> argparse._ArgumentGroup:
    """Add the options for writing an adapter. Returns their group. format: the default; None if one must be given."""
    group = parser.add_argument_group("writing")
    group.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="file to write, or for peft the folder")
    usual = f" (default: {format})" if format else ""
    group.add_argument("--format", choices=FORMATS, default=format, metavar="NAME", help=f"{', '.join(FORMATS)}{usual}")
    group.add_argument("--overwrite", action="store_true", help="replace the adapter that is there")
    group.add_argument("--json", action="store_true", help="print what was done as JSON")
    return group


def write(
    adapter: "Adapter",
    output: Path,
    format: str,
    keys: Mapping[str, str] | None = None,
    *,
    layout: choices.ExpertLayout | None = None,
    quiet: bool = False,
) -> None:
    """Write the adapter to an output that is free, and print what was written unless `quiet`. Raises `AlgebraError` for an
    unusable adapter."""
    from .. import formats

    _check_sound("the result", adapter)
    formats.save(adapter, output, format, keys=keys, layout=layout)
    if not quiet:
        say_written(outputs.targets(output, format))


def report_of(adapter: "Adapter", output: Path, format: str) -> dict[str, Any]:
    """The report of `--json` for an adapter that was written."""
    written = [{"path": str(file), "bytes": file.stat().st_size} for file in outputs.targets(output, format)]
    ranks = sorted({update.r for update in adapter.layers.values()})
    counts = {"layers": len(adapter.layers), "parameters": adapter.num_parameters(), "tensors": len(adapter.tensors)}
    return {"format": format, "files": written, "digest": adapter.digest(), "ranks": ranks, **counts}


def say_written(files: Sequence[Path]) -> None:
    """Print which files were written, and how large they are."""
    say("Wrote " + " and ".join(f"{printable(str(file))} ({file.stat().st_size:,} bytes)" for file in files) + ".")
