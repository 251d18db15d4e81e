"""Adapters in files. Each format is one file here, with `detect`, `read` and `write`; none of them knows models.

`detect` and `read` take an `Opened` path, which reads what is there once, however many formats look at it.

    peft          a folder with adapter_config.json and adapter_model.safetensors, or .bin as PEFT once wrote it
    safetensors   one file that holds any adapter (docs/format.md)
    loralib       a checkpoint of loralib 0.1: a pickled state dict, read without executing anything
    diffusers     pytorch_lora_weights.safetensors, with the names that diffusers gives and once gave
    kohya         the file that kohya's scripts and the programs around them exchange

Only read are

    original      diffusion transformers' names in their original code, as ComfyUI, kohya's scripts and others write them
    mlx           the folder of mlx_lm, whose factors are the other way round
    peft-file     one file with PEFT's names, without the configuration

`keys` reads and writes files with custom names. docs/formats.md tells what each can hold.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .. import choices, patterns
from ..adapters.adapter import Adapter, check_adapter
from ..adapters.updates import ProjectionUpdate
from ..arguments import as_path, wrong
from ..choices import ExpertLayout
from ..config import LoRAConfig
from ..errors import FormatError
from ..printing import short
from ..storage import hub
from ..storage.places import what_is_at
from . import diffusers, foreign, kohya, loralib_0_1, mlx, one_file, original, peft, peft_file
from .keys import KeyMap, check_keys
from .keys import read as read_by_keys
from .keys import write as write_by_keys
from .opened import Opened
from .validation import GIVE_A_KEY_MAP, NOT_WRITTEN, check_sound

FORMATS: dict[str, ModuleType] = {
    "peft": peft,
    "safetensors": one_file,
    "loralib": loralib_0_1,
    "diffusers": diffusers,
    "kohya": kohya,
}
READ_ONLY: dict[str, ModuleType] = {"mlx": mlx, "original": original, "peft-file": peft_file}
_FIRST = {"mlx": mlx, "peft": peft, "safetensors": one_file, "loralib": loralib_0_1, "original": original}
_READERS: dict[str, ModuleType] = _FIRST | FORMATS | READ_ONLY  # in the order in which they are asked
_DEFAULTS = LoRAConfig()
_MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def detect(path: str | os.PathLike[str]) -> str:
    """The name of the format of the adapter at `path`.

    Args:
        path: A file or a folder, or a name on the Hugging Face hub that is in the local cache.

    Returns:
        One of "peft", "safetensors", "loralib", "diffusers", "kohya", "original", "mlx" and "peft-file".

    Raises:
        FormatError: When there is nothing at `path`, or no adapter in a known format.
        ArgumentError: When `path` is not a path.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lora.save(lora.extract(model), folder + "/mine.safetensors", format="safetensors")
        ...     lora.detect(folder + "/mine.safetensors")
        'safetensors'
    """
    return open(path).format


@dataclass(frozen=True)
class AdapterFile:
    """An adapter in a file or folder, not yet read. opened: where `format`, one of `FORMATS` or `READ_ONLY`, finds it."""

    path: Path
    format: str
    opened: Opened

    def read(self, config: LoRAConfig | None = None, layout: ExpertLayout | None = None) -> Adapter:
        """The adapter; what `config` and `layout` are for, and what is refused, see `load`."""
        if layout is None or self.format != "peft":
            _check_no_layout(self.path, layout)
            return _agreeing(self.path, _READERS[self.format].read(self.opened, config), config)
        return _agreeing(self.path, peft.read(self.opened, config, layout), config)


def open(path: str | os.PathLike[str], format: str | None = None) -> AdapterFile:
    """Find the format of the adapter at `path`, where it is not given. Nothing is read twice, neither now nor by `read`."""
    path = hub.located(as_path(path))
    if format is not None:
        _check_format(format, _READERS)
    _check_exists(path)
    opened = Opened(path)
    return AdapterFile(path, *_found(opened)) if format is None else AdapterFile(path, format, opened)


def load(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    config: LoRAConfig | None = None,
    keys: KeyMap | None = None,
    layout: ExpertLayout | None = None,
) -> Adapter:
    """Read an adapter from `path`, in any known format. `Adapter.source` says which it was.

    Nothing that a file contains is executed. Tensors of safetensors files are mapped into memory and read when they are used.

    Args:
        path: A file or a folder, or a name on the Hugging Face hub that is in the local cache.
        format: The format's name, one of those that `detect` gives. Default: found from the content.
        config: What files of loralib 0.1 (and of PEFT without its configuration, and of a key map without alphas) do not say:
            `lora_alpha`, and `enable_lora` for fused projections. What a file says itself counts.
        keys: For a file of no known format: {regular expression: replacement}, or a function of one name, that turns the names
            in it into `<layer>.lora_A`, `<layer>.lora_B` and so on.
        layout: How the factors of experts lie in a folder of PEFT's that does not say it: "rank-major" (PEFT from 0.19 on),
            "exchanged" (PEFT 0.17 and 0.18) or "expert-major" (Unsloth before it left a mark).

    Returns:
        The adapter.

    Raises:
        FormatError: When there is no adapter, or its content is damaged, cannot be represented, or contradicts its own
            configuration or `config`.
        ArgumentError: When an argument is of another kind.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lora.save(lora.extract(model), folder)
        ...     lora.load(folder)
        Adapter(1 layer, r=2, 32 parameters, 0 extra tensors)
    """
    if config is not None and not isinstance(config, LoRAConfig):
        raise wrong("config", "a LoRAConfig", config)
    _check_layout(layout)
    if keys is None:
        return open(path, format).read(config, layout)
    check_keys(keys)
    path = hub.located(as_path(path))
    _check_exists(path)
    _check_no_layout(path, layout)
    return _agreeing(path, read_by_keys(Opened(path), keys, config), config)


def _check_no_layout(path: Path, layout: ExpertLayout | None) -> None:
    if layout is not None:
        raise FormatError(f"Only PEFT's folders need a layout, and {path} is another format; leave {layout} out.")


def _agreeing(path: Path, adapter: Adapter, config: LoRAConfig | None) -> Adapter:
    """`adapter`; `FormatError` when `config` says a rank or lora_alpha of a layer, and the file another."""
    for field, pattern in (("r", config.rank_pattern), ("lora_alpha", config.alpha_pattern)) if config else ():
        for name, update in adapter.layers.items():
            by_config, held = patterns.lookup(pattern, name, getattr(config, field)), getattr(update, field)
            if by_config not in (held, getattr(_DEFAULTS, field)) and not isinstance(update, ProjectionUpdate):
                raise FormatError(f"{path}: layer {name!r} has {field}={held:g}, but config says {field}={by_config:g}.")
    return adapter


def save(
    adapter: Adapter,
    path: str | os.PathLike[str],
    format: str = "peft",
    *,
    keys: KeyMap | None = None,
    layout: ExpertLayout | None = None,
) -> None:
    """Write `adapter` to `path`. Each file appears whole or not at all: a crash leaves the old one or the new one.

    Args:
        adapter: The adapter.
        path: A folder for "peft" and "diffusers" (a file for the latter where it ends in .safetensors), a file for the others.
        format: "peft", "safetensors", "loralib", "diffusers" or "kohya".
        keys: Write a safetensors file with custom names instead, by a map as for `load`.
        layout: How the factors of experts lie in PEFT's folder, for programs that read another layout than that of PEFT from
            0.19 on, "rank-major": "exchanged" (for matrices that are stored as (out, in)) or "expert-major".

    Raises:
        FormatError: When the format is not known, or cannot hold something in the adapter, which is named.
        ArgumentError: When `adapter` is not an adapter, or `path` not a path.
        OSError: When the disk is full; it names the path.

    Example:
        >>> import os, tempfile
        >>> adapter = lora.Adapter(lora.LoRAConfig(), {"proj": lora.LoRAUpdate(torch.ones(1, 3), torch.ones(5, 1), 1)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lora.save(adapter, folder)
        ...     sorted(os.listdir(folder))
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    check_adapter(adapter)
    path = as_path(path)
    _check_layout(layout)
    if layout is not None and (keys is not None or format != "peft"):
        raise FormatError(f"Only PEFT's folder has a layout of experts; leave out {layout}. {NOT_WRITTEN}")
    check_sound(adapter)
    if "" in adapter.layers and (keys is not None or format != "safetensors"):
        raise FormatError(
            "The adapter is of a model that is one layer, which has no name",
            "name it: adapter.rename({'': 'layer'})",
            option="name it: --rename =layer",
            outcome=NOT_WRITTEN,
        )
    if keys is not None:
        check_keys(keys)
        write_by_keys(adapter, path, keys)
        return
    _check_format(format, FORMATS)
    if layout is not None:
        peft.write(adapter, path, layout)
    else:
        FORMATS[format].write(adapter, path)


def _check_layout(layout: object) -> None:
    if layout is not None and layout not in choices.names(ExpertLayout):
        known = ", ".join(choices.names(ExpertLayout))
        raise FormatError(f"layout={short(layout)}: choose one of {known}. Nothing was read or written.")


def _check_format(format: str, known: Mapping[str, ModuleType]) -> None:
    if not isinstance(format, str) or format not in known:
        problem = "can only be read" if isinstance(format, str) and format in READ_ONLY else "is not known"
        raise FormatError(f"format={short(format)} {problem}; choose one of {', '.join(known)}. Nothing was read or written.")


def _check_exists(path: Path) -> None:
    if not path.is_file() and not path.is_dir():
        remedy = hub.advice(path) or "give the path of a saved adapter"
        raise FormatError(f"{path} {what_is_at(path)}; {remedy}.")


def _found(opened: Opened) -> tuple[str, Opened]:
    """The format of the adapter at a path, and where it is: in a folder with one adapter file, that file."""
    places = [opened, *_only_file(opened)]
    for place in places:
        for name, module in _READERS.items():
            if module.detect(place):
                return name, place
    raise _unknown(places[-1])


def _only_file(opened: Opened) -> list[Opened]:
    """The file in a folder that may hold an adapter, if there is exactly one."""
    if not opened.path.is_dir():
        return []
    names = [file.name for file in sorted(opened.path.iterdir()) if file.suffix in (".safetensors", ".bin", ".pt")]
    return [opened / names[0]] if len(names) == 1 and names[0] not in _MODEL_FILES else []


def _unknown(opened: Opened) -> FormatError:
    """The error that says what is at a path, or what was expected."""
    path, nothing_known = opened.path, f"{opened} holds no adapter in a known format"
    if path.name in (peft.TENSORS, peft.PICKLED):
        return FormatError(f"{nothing_known}: {peft.CONFIG}, which PEFT writes next to this file, is missing.")
    if path.is_dir():
        return FormatError(f"{nothing_known}: {_instead_in_folder(path)}.")
    if path.suffix == ".json":
        return FormatError(nothing_known, "give the folder that the file is in")
    names = opened.names()
    if what := foreign.by_names(names):
        return FormatError(f"{nothing_known}: it is {what}.")
    model = "" if any("lora" in name.lower() for name in names) else " (a whole model, perhaps)"
    shown = ", ".join(names[:3]) or "none"
    own_names = (f"for an adapter with names of your own {remedy}" for remedy in GIVE_A_KEY_MAP)
    return FormatError(f"{nothing_known}: its tensors ({shown} …) have names of no known format{model}", *own_names)


def _instead_in_folder(path: Path) -> str:
    if files := [name for name in _MODEL_FILES if (path / name).is_file()]:
        return f"{files[0]} holds a whole model; an adapter of its difference to another makes `loralib extract`"
    if files := [name for name in (peft.TENSORS, peft.PICKLED) if (path / name).is_file()]:
        return f"{peft.CONFIG}, which PEFT writes next to {files[0]}, is missing"
    if files := sorted(file.name for file in path.glob("*.gguf")):
        return f"{files[0]} is {foreign.by_first_bytes(path / files[0]) or 'no GGUF file'}"
    if inside := sorted(folder.name for folder in path.iterdir() if folder.is_dir() and peft.detect(Opened(folder))):
        return f"there are adapters in {', '.join(inside[:3])} within it; give the path of one"
    return "; ".join(module.EXPECTED for module in FORMATS.values())
