"""Stable Diffusion's adapters as diffusers writes them: `pytorch_lora_weights.safetensors`.

Tensor names are `<component>.<layer>.<suffix>`, with a component such as `unet` or `text_encoder`, which stays part of the
layer's name here. Suffixes of the factors A and B:

    lora.down.weight, lora.up.weight                              the UNet's
    lora_linear_layer.down.weight, lora_linear_layer.up.weight    text encoders'
    lora_A.weight, lora_B.weight                                  newer models', and those of every component today
    processor.to_q_lora.down.weight …                             the oldest ones; to_out_lora is the layer to_out.0

Beside them `alpha` may stand, and `lora_magnitude_vector` (DoRA). Without an alpha lora_alpha is the rank. Newer files say it,
and all else of PEFT's configuration, in the metadata: `lora_adapter_metadata`, a JSON object with keys `<component>.<field>`.
This is how a scaling other than 1 is written here; older versions of diffusers do not read it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import patterns
from ..adapter import Adapter, described
from ..config import LoRAConfig
from ..errors import ConfigError, FormatError
from ..updates import ConvolutionUpdate, EmbeddingUpdate, LoRAUpdate
from .checked import alpha_of, common_form, made, pair, refuse
from .files import write_atomically
from .peft_config import configuration, refuse_unknown
from .tensor_file import read_header, read_tensors, tensor_bytes

FILE = "pytorch_lora_weights.safetensors"
EXPECTED = f"an adapter of diffusers is a file {FILE} with tensors named unet.… or text_encoder.…"

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "transformer_2", "prior", "decoder")
_METADATA = "lora_adapter_metadata"
_SUFFIX = re.compile(
    r"(?P<layer>.+?)\.(?:"
    r"(?:lora|lora_linear_layer)\.(?P<way>down|up)\.weight|lora_(?P<factor>[AB])\.weight"
    r"|(?:processor\.)?(?P<old>to_(?:q|k|v|out))_lora\.(?P<old_way>down|up)\.weight"
    r"|(?:lora\.)?(?P<alpha>alpha)|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?)"
)
_PARTS = {"down": "A", "up": "B", "A": "A", "B": "B", "alpha": "alpha", "lora_magnitude_vector": "magnitude"}
_DOWN_UP = {"unet": ("lora.down.weight", "lora.up.weight")}
_OF_TEXT = ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
_NEWER = ("lora_A.weight", "lora_B.weight")


def detect(path: Path) -> bool:
    """Whether `path` is such a file, or a folder with one, by the names of its tensors."""
    try:
        names = list(read_header(_file(path)).entries) if _file(path).is_file() else []
    except FormatError:
        return False
    return any(name.partition(".")[0] in COMPONENTS and _SUFFIX.fullmatch(name) for name in names)


def read(path: Path, config: LoRAConfig | None = None) -> Adapter:
    """The adapter in the file or folder `path`; `FormatError` when it is damaged or holds what cannot be represented."""
    path = _file(path)
    stored, metadata = read_tensors(path)
    parts = _sorted(path, stored)
    configs = _configurations(path, metadata.get(_METADATA), {name.partition(".")[0] for name in parts})
    layers = {name: _update(f"{path}: layer {name!r}", name, found, configs) for name, found in parts.items()}
    if not layers:
        raise FormatError(f"{path} holds no factors; it is no LoRA adapter.")
    return Adapter(described(LoRAConfig(), layers), layers, source=f"diffusers file {path.name}")


def write(adapter: Adapter, path: Path) -> None:
    """Write the file `path` if it ends in .safetensors, else the folder's `pytorch_lora_weights.safetensors`."""
    layers = representable(adapter, "diffusers")
    tensors: dict[str, Tensor] = {}
    for name, update in layers.items():
        component = name.partition(".")[0]
        down, up = _DOWN_UP.get(component, _OF_TEXT if component.startswith("text_encoder") else _NEWER)
        tensors |= {f"{name}.{down}": update.A, f"{name}.{up}": update.B}
        if update.magnitude is not None:
            ones = [1] * (update.B.dim() - 2)
            tensors[f"{name}.lora_magnitude_vector"] = update.magnitude.reshape(1, -1, *ones) if ones else update.magnitude
    metadata = {"format": "pt"}
    if any(update.scaling != 1 or update.use_rslora for update in layers.values()):
        said = _said(adapter, layers)
        metadata[_METADATA] = json.dumps(said, indent=2, sort_keys=True)
    content = tensor_bytes(tensors, metadata)
    if path.suffix != ".safetensors":
        path.mkdir(parents=True, exist_ok=True)
    write_atomically(_file(path) if path.suffix == ".safetensors" else path / FILE, content)


def representable(adapter: Adapter, format: str) -> dict[str, LoRAUpdate]:
    """The updates of `adapter` in a form that diffusion programs know; `FormatError` for whatever they have no place for."""
    refuse("tensors trained in full", adapter.tensors, format)
    refuse("rows of tokens", adapter.rows, format)
    refuse("metadata", adapter.metadata, format)
    layers = {name: common_form(name, update, format) for name, update in adapter.layers.items()}
    refuse("updates of embeddings", [n for n, update in layers.items() if isinstance(update, EmbeddingUpdate)], format)
    if not layers:
        raise FormatError("The adapter adapts no layer. Nothing was written.")
    for name in layers:
        if name.partition(".")[0] not in COMPONENTS or "." not in name:
            raise FormatError(
                f"{name!r} lies in none of the components {', '.join(COMPONENTS[:5])} …, by which {format} knows layers; name "
                "one: adapter.rename({'': 'unet'}). Nothing was written."
            )
    return layers


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def _sorted(path: Path, stored: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The parts of each layer's update by what they are: A, B, alpha, magnitude."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        match = _SUFFIX.fullmatch(key)
        if match is None or key.partition(".")[0] not in COMPONENTS:
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


def _configurations(path: Path, text: str | None, components: set[str]) -> dict[str, LoRAConfig]:
    """What the metadata say of each component."""
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: {_METADATA} is not JSON ({error}).") from None
    if not isinstance(values, dict):
        raise FormatError(f"{path}: {_METADATA} is not a JSON object.")
    found = {}
    for component in components:
        own = {k.removeprefix(f"{component}."): v for k, v in values.items() if k.startswith(f"{component}.")}
        if own:
            refuse_unknown(path, {"peft_type": "LORA"} | own)
            try:
                found[component] = configuration(own)
            except (ConfigError, TypeError, OverflowError) as error:
                raise FormatError(f"{path}: {error}") from None
    return found


def _update(where: str, name: str, parts: dict[str, Tensor], configs: Mapping[str, LoRAConfig]) -> LoRAUpdate:
    A, B = pair(where, parts, "A", "B")
    magnitude = parts.get("magnitude")
    magnitude = magnitude if magnitude is None or magnitude.dim() == 1 else magnitude.flatten()
    kind = ConvolutionUpdate if B.dim() > 2 else LoRAUpdate
    component, _, inner = name.partition(".")
    config = configs.get(component)
    if config is None:
        rank = len(A) if A.dim() else 1
        return made(where, kind, A, B, alpha_of(where, parts.get("alpha"), max(rank, 1)), False, magnitude)
    if "alpha" in parts:
        raise FormatError(f"{where} has an alpha beside {_METADATA}, which says it, too.")
    lora_alpha = patterns.lookup(config.alpha_pattern, inner, config.lora_alpha)
    update = made(where, kind, A, B, lora_alpha, config.use_rslora, magnitude)
    if update.r != (r := patterns.lookup(config.rank_pattern, inner, config.r)):
        raise FormatError(f"{where} has factors of rank {update.r}, but {_METADATA} says r={r}.")
    return update


def _said(adapter: Adapter, layers: Mapping[str, LoRAUpdate]) -> dict[str, Any]:
    """PEFT's configuration of each component, as diffusers hands it to PEFT."""
    said: dict[str, Any] = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in layers):
        own = {n.partition(".")[2]: update for n, update in sorted(layers.items()) if n.partition(".")[0] == component}
        if len({update.use_rslora for update in own.values()}) > 1:
            raise FormatError(
                f"Some layers of {component} scale by lora_alpha / √r, some by lora_alpha / r. Nothing was written."
            )
        config = described(LoRAConfig(), own).to_dict()
        kept = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")
        said |= {f"{component}.{key}": config[key] for key in kept}
        said[f"{component}.use_dora"] = any(update.magnitude is not None for update in own.values())
    return said
