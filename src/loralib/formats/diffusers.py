"""Stable Diffusion's adapters as diffusers writes them: `pytorch_lora_weights.safetensors`.

Tensor names are `<component>.<layer>.<suffix>`, with a component such as `unet` or `text_encoder`, which stays part of the
layer's name here. Suffixes of the factors A and B:

    lora.down.weight, lora.up.weight                              the UNet's
    lora_linear_layer.down.weight, lora_linear_layer.up.weight    text encoders'
    lora_A.weight, lora_B.weight                                  newer models', and those of every component today
    processor.to_q_lora.down.weight …                             the oldest ones; to_out_lora is the layer to_out.0
    lora_down.weight, lora_up.weight                              those of some programs that know diffusers' names

`alpha` may stand next to them, and `lora_magnitude_vector.weight` (DoRA; also without `.weight`, which loads into a UNet but
not into a text encoder). Without an alpha lora_alpha is the rank. Newer files say it, and all else of PEFT's configuration, in
the metadata: `lora_adapter_metadata`, a JSON object with keys `<component>.<field>`.

Some readers look at neither: a model's own `load_lora_adapter(path)` does not open the metadata, and takes no alphas from a
file. So a scaling other than 1 is written into B here, and lora_alpha is the rank (see `diffusers_scaling`); only ranks that
differ are in the metadata.

A model's own `save_lora_adapter` writes the same file for itself alone, as did all of diffusers up to 0.16: names and fields
have no component then, nor have the layers' names here. The file may be pickled (`pytorch_lora_weights.bin`).

CLIP's text encoder has lost its outermost module, `text_model`, in transformers 5. diffusers takes that off the names of
tensors where it has to, but not off what the metadata say of layers; so the metadata written here fit both.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import patterns
from ..adapters.adapter import Adapter
from ..adapters.config_of import described
from ..adapters.embedding_update import EmbeddingUpdate
from ..adapters.updates import LoRAUpdate
from ..architectures import COMPONENTS, ROOTS
from ..config import LoRAConfig
from ..errors import ConfigError, FormatError
from ..storage.atomic import write_atomically
from ..storage.safetensors import SUFFIX, tensor_bytes
from . import diffusers_scaling as scaling
from .opened import Opened
from .peft_config import configuration, refuse_costly, refuse_unknown
from .validation import (
    FACTORS,
    MAGNITUDE,
    NOT_WRITTEN,
    alpha_of,
    common_form,
    from_shapes_of_peft,
    in_shapes_of_peft,
    kind_of,
    made,
    named,
    parts_of,
    refuse,
)

FILE, PICKLED = "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"
EXPECTED = f"an adapter of diffusers is a file {FILE} with tensors named unet.… or text_encoder.…"

METADATA = "lora_adapter_metadata"
_NOT_LOADED = ("enable_lora", "trainable_token_indices")  # of PEFT, for which diffusers' loaders have no tensors
_OUTERMOST = "text_model."
_SUFFIX = re.compile(
    r"(?P<layer>.+?)\.(?:"
    r"(?:lora[._]|lora_linear_layer\.)(?P<way>down|up)\.weight|lora_(?P<factor>[AB])\.weight"
    r"|(?P<old>to_(?:q|k|v|out))_lora\.(?P<old_way>down|up)\.weight"
    r"|(?:lora\.)?(?P<alpha>alpha)|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?)"
)
_PARTS = {"down": "A", "up": "B", "A": "A", "B": "B", "alpha": "alpha", "lora_magnitude_vector": "magnitude"}
_NAMES = {"lora_A": "A", "lora_B": "B", MAGNITUDE: "magnitude"}
_DOWN_UP = {"unet": ("lora.down.weight", "lora.up.weight")}
_OF_TEXT = ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
_NEWER = ("lora_A.weight", "lora_B.weight")


def detect(opened: Opened) -> bool:
    """Whether it is such a file, or a folder with one, by the names of its tensors."""
    file = _file(opened)
    matches = [match for match in map(_match, file.known_names()) if match]
    if any(_has_component(match["layer"]) for match in matches):
        return True
    return bool(matches) and (METADATA in _metadata_of(file) or _of_one_model(file, matches))


def read(opened: Opened, config: LoRAConfig | None = None) -> Adapter:
    """The adapter in the file or folder; `FormatError` when it is damaged or holds what cannot be represented."""
    file = _file(opened)
    path, stored, metadata = file.path, file.all_tensors(), _metadata_of(file)
    settings = _metadata(path, metadata.get(METADATA))
    whole = "r" in settings or (not settings and _of_one_model(file, [match for match in map(_match, stored) if match]))
    parts = _sorted(path, stored, whole)
    layers: dict[str, LoRAUpdate] = {}
    for component in dict.fromkeys("" if whole else name.partition(".")[0] for name in parts):
        own = {name: found for name, found in parts.items() if not component or patterns.within(name, [component])}
        fields = {
            key.removeprefix(f"{component}."): value
            for key, value in settings.items()
            if whole or key.startswith(f"{component}.")
        }
        layers |= _updates(path, component, own, fields)
    if not layers:
        raise FormatError(f"{path} holds no factors; it is not LoRA adapter.")
    ordered = scaling.restored({name: layers[name] for name in parts}, metadata, path)
    return Adapter(LoRAConfig(), ordered, source=f"diffusers file {path.name}")


def write(adapter: Adapter, path: Path) -> None:
    """Write the file `path` if it ends in .safetensors, else the folder's `pytorch_lora_weights.safetensors`."""
    given = representable(adapter, "diffusers")
    layers = {name: scaling.into_b(update) for name, update in given.items()}
    tensors: dict[str, Tensor] = {}
    for name, update in layers.items():
        component = name.partition(".")[0]
        down, up = _DOWN_UP.get(component, _OF_TEXT if component.startswith("text_encoder") else _NEWER)
        names = {"lora_A": down, "lora_B": up, MAGNITUDE: "lora_magnitude_vector.weight"}
        tensors |= named(name, in_shapes_of_peft(update), names)
    metadata = {"format": "pt"} | scaling.note(given, layers)
    settings = _settings_of(layers)
    if any(key.endswith(".rank_pattern") and value for key, value in settings.items()):
        metadata[METADATA] = json.dumps(settings, indent=2, sort_keys=True)
    content = tensor_bytes(tensors, metadata)
    if path.suffix != SUFFIX:
        path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / FILE if path.suffix != SUFFIX or path.is_dir() else path, content)


def representable(adapter: Adapter, format: str) -> dict[str, LoRAUpdate]:
    """The updates of `adapter` in a form that diffusion programs know; `FormatError` for whatever they have no place for."""
    refuse("tensors trained in full", adapter.tensors, format)
    refuse("token rows", adapter.rows, format)
    refuse("metadata", adapter.metadata, format)
    layers = {name: common_form(name, update, format) for name, update in adapter.layers.items()}
    refuse("updates of embeddings", [n for n, update in layers.items() if isinstance(update, EmbeddingUpdate)], format)
    if not layers:
        raise FormatError("The adapter adapts no layer. Nothing was written.")
    for name in layers:
        if not _has_component(name):
            raise FormatError(
                f"{name!r} lies in none of the components {', '.join(COMPONENTS[:5])} …, by which {format} knows layers",
                "name one: adapter.rename({'': 'unet'})",
                option="name one: --rename =unet",
                outcome=NOT_WRITTEN,
            )
    return layers


def _file(opened: Opened) -> Opened:
    if not opened.path.is_dir():
        return opened
    return opened / (PICKLED if (opened / PICKLED).path.is_file() and not (opened / FILE).path.is_file() else FILE)


def _metadata_of(file: Opened) -> Mapping[str, str]:
    return file.metadata if file.is_safetensors else {}


def _match(key: str) -> re.Match[str] | None:
    return _SUFFIX.fullmatch(key.replace(".processor.", "."))


def _of_one_model(file: Opened, matches: Sequence[re.Match[str]]) -> bool:
    """Whether these are names of one model's layers without a component: by the file's name, or all of them by their own."""
    if not matches or any(_has_component(match["layer"]) for match in matches):
        return False
    return file.path.name in (FILE, PICKLED) or all(match["layer"].partition(".")[0] in ROOTS for match in matches)


def factored(where: str, parts: Mapping[str, Tensor], lora_alpha: float, use_rslora: bool = False) -> LoRAUpdate:
    """The update of a linear layer or, where the factors have a kernel, of a convolution; `FormatError` when only one has."""
    A, B = (parts[factor] for factor in FACTORS)
    if A.dim() != B.dim():
        raise FormatError(
            f"{where} has factors of shapes {tuple(A.shape)} and {tuple(B.shape)}; expected both with a kernel, or none."
        )
    return made(where, kind_of(parts), parts, lora_alpha, use_rslora)


def _has_component(name: str) -> bool:
    component, _, inner = name.partition(".")
    return component in COMPONENTS and bool(inner)


def _sorted(path: Path, stored: Mapping[str, Tensor], whole: bool) -> dict[str, dict[str, Tensor]]:
    """The parts of each layer's update by what they are: A, B, alpha, magnitude. whole: the names have no component."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        match = _match(key)
        if match is None or not (whole or _has_component(match["layer"])):
            raise FormatError(f"{path}: tensor {key!r} is of no kind that can be represented.")
        layer, way = match["layer"], next(filter(None, match.group("way", "factor", "old_way", "alpha", "magnitude")))
        if match["old"]:
            layer = f"{layer}.{_old_layer(key, match['old'])}"
        if _PARTS[way] in found.setdefault(layer, {}):
            raise FormatError(f"{path}: layer {layer!r} has its {_PARTS[way]} twice, under names of different ages.")
        found[layer][_PARTS[way]] = tensor
    return found


def _old_layer(key: str, name: str) -> str:
    """What `name` of an old attention processor is called in the model: of a UNet, or of a text encoder."""
    if key.startswith("text_encoder"):
        return name.removeprefix("to_") + "_proj"
    return "to_out.0" if name == "to_out" else name


def _metadata(path: Path, text: str | None) -> dict[str, Any]:
    """The JSON object in the metadata, or nothing where there is none."""
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: {METADATA} is not JSON ({error}).") from None
    if not isinstance(values, dict):
        raise FormatError(f"{path}: {METADATA} is not a JSON object.")
    return values


def _updates(
    path: Path, component: str, parts: Mapping[str, dict[str, Tensor]], fields: Mapping[str, Any]
) -> dict[str, LoRAUpdate]:
    """The updates of a component's layers, of which `fields` are what the metadata say."""
    dora = {"magnitude" in found for found in parts.values()}
    if len(dora) > 1 or ("use_dora" in fields and bool(fields["use_dora"]) not in dora):
        raise FormatError(
            f"{path}: of the layers of {component or 'the model'}, {sum('magnitude' in found for found in parts.values())} of "
            f"{len(parts)} have magnitudes, and use_dora={fields.get('use_dora')}; DoRA is for all of them or none."
        )
    config = _configuration(path, fields) if fields else None
    if config:
        refuse_costly(path, config, list(parts))
    return {name: _update(f"{path}: layer {name!r}", name, component, found, config) for name, found in parts.items()}


def _configuration(path: Path, fields: Mapping[str, Any]) -> LoRAConfig:
    refuse_unknown(path, {"peft_type": "LORA", **fields})
    if odd := [key for key in _NOT_LOADED if fields.get(key)]:
        raise FormatError(f"{path}: {odd[0]}={fields[odd[0]]!r} asks for something that diffusers does not load.")
    try:
        return configuration(fields)
    except (ConfigError, TypeError, OverflowError) as error:
        raise FormatError(f"{path}: {error}") from None


def _update(where: str, name: str, component: str, stored: dict[str, Tensor], config: LoRAConfig | None) -> LoRAUpdate:
    parts = from_shapes_of_peft(parts_of(where, stored, _NAMES))
    if config is None:
        rank = len(parts["lora_A"]) if parts["lora_A"].dim() else 1
        return factored(where, parts, alpha_of(where, stored.get("alpha"), max(rank, 1)))
    if "alpha" in stored:
        raise FormatError(f"{where} has an alpha and {METADATA}, which both give it.")
    inner = name.removeprefix(f"{component}.") if component else name
    update = factored(where, parts, patterns.lookup(config.alpha_pattern, inner, config.lora_alpha), config.use_rslora)
    if update.r != (r := patterns.lookup(config.rank_pattern, inner, config.r)):
        raise FormatError(f"{where} has factors of rank {update.r}, but {METADATA} says r={r}.")
    return update


def _settings_of(layers: Mapping[str, LoRAUpdate]) -> dict[str, Any]:
    """PEFT's configuration of each component, as diffusers hands it to PEFT."""
    settings: dict[str, Any] = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in layers):
        own = {n.partition(".")[2]: update for n, update in sorted(layers.items()) if n.partition(".")[0] == component}
        dora = {update.is_dora for update in own.values()}
        if len(dora) > 1:
            raise FormatError(
                f"Some layers of {component} are DoRA and some are not, which diffusers cannot hold. Nothing was written."
            )
        config = described(LoRAConfig(), own).to_dict()
        if component.startswith("text_encoder"):
            config = _with_or_without_outermost(config)
        kept = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")
        settings |= {f"{component}.{key}": config[key] for key in kept} | {f"{component}.use_dora": dora.pop()}
    return settings


def _with_or_without_outermost(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose names and patterns fit layers whether or not they lie in `text_model`."""
    written, either = patterns.exactly(_OUTERMOST), f"^({re.escape(_OUTERMOST)})?"
    targets = [name.removeprefix(_OUTERMOST) for name in config["target_modules"]]
    fitting = {
        field: {key.replace(written, either, 1): value for key, value in config[field].items()}
        for field in ("rank_pattern", "alpha_pattern")
    }
    return config | fitting | {"target_modules": targets}
