"""Adapters of MLX (`mlx_lm.lora`): read only. A folder with `adapters.safetensors` and `adapter_config.json`.

    <layer>.lora_a     (in, r), or (num_embeddings, r) of an embedding: the transpose of A
    <layer>.lora_b     (r, out): the transpose of B
    <layer>.m          (out,): DoRA's magnitudes
    anything else      a tensor trained in full, by its name in the model

`lora_parameters` of the configuration say `scale`, which multiplies B·A as it is: lora_alpha = scale·r. The first versions
multiplied it by `alpha` / r as well, and later ones did not look at an `alpha`, so that one other than r is refused.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import patterns
from ..adapters.adapter import Adapter
from ..adapters.embedding_update import EmbeddingUpdate
from ..adapters.updates import LoRAUpdate
from ..architectures import is_embedding
from ..config import LoRAConfig
from ..errors import FormatError
from .opened import Opened
from .validation import MAGNITUDE, by_layer, made, parts_of

CONFIG, FILE = "adapter_config.json", "adapters.safetensors"
EXPECTED = f"an MLX folder has {CONFIG} and {FILE}"

_NAMES = {"lora_A": "lora_a", "lora_B": "lora_b", MAGNITUDE: "m"}
_SAYS_FACTORS = (".lora_a", ".lora_b")


def detect(opened: Opened) -> bool:
    """Whether it is such a folder, or a file with such names."""
    if not opened.path.is_dir():
        return any(name.endswith(_SAYS_FACTORS) for name in opened.known_names())
    return detect(opened / FILE) or _is_configuration(opened / CONFIG)


def _is_configuration(file: Opened) -> bool:
    try:
        return file.path.is_file() and "lora_parameters" in file.json() and "peft_type" not in file.json()
    except FormatError:
        return False


def read(opened: Opened, config: LoRAConfig | None = None) -> Adapter:
    """The adapter in the folder or file. config: its `lora_alpha`, where there is no configuration; `FormatError` when neither
    is there, or the adapter is damaged or of another kind."""
    folder, file = (opened, opened / FILE) if opened.path.is_dir() else (Opened(opened.path.parent), opened)
    if not file.path.is_file():
        raise FormatError(f"{folder} has {CONFIG} of MLX but no {FILE}; give the file of a step, or fetch the adapter again.")
    path, stored = file.path, file.all_tensors()
    factors, others = by_layer(str(path), stored, (*_NAMES.values(),))
    factors, others = _without_strays(factors, others)
    if not factors:
        raise FormatError(f"{path} holds no factors with MLX's names (<layer>.lora_a and <layer>.lora_b).")
    settings = (folder / CONFIG).json() if _is_configuration(folder / CONFIG) else None
    if settings is None and config is None:
        raise FormatError(
            f"{path} has MLX's names, and {CONFIG}, which says the scale, is not next to it",
            "put it there, or give scale·r: load(path, config=LoRAConfig(lora_alpha=160))",
            option="put it there, or give scale·r: --lora-alpha N",
        )
    layers = {}
    for name, parts in factors.items():
        where = f"{path}: layer {name!r}"
        tensors = _transposed(where, name, parts)
        layers[name] = _update(
            where, name, tensors, _alpha(folder.path / CONFIG, name, len(tensors["lora_A"]), settings, config)
        )
    tensors = {name: tensor for name, tensor in stored.items() if name in others}
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in tensors))
    model = {"base_model_name_or_path": settings["model"]} if settings and isinstance(settings.get("model"), str) else {}
    return Adapter(LoRAConfig(modules_to_save=modules), layers, tensors, model, source=f"MLX adapter {path.name}")


def _without_strays(
    factors: Mapping[str, dict[str, Tensor]], others: set[str]
) -> tuple[dict[str, dict[str, Tensor]], set[str]]:
    """The layers that have factors; a tensor named `m` alone is of a module of that name."""
    alone = {f"{layer}.m" for layer, parts in factors.items() if parts.keys() == {"m"}}
    return {layer: parts for layer, parts in factors.items() if f"{layer}.m" not in alone}, others | alone


def _transposed(where: str, name: str, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = parts_of(where, stored, _NAMES)
    for part in ("lora_A", "lora_B"):
        if parts[part].dim() != 2:
            kind = "of experts (LoRASwitchLinear), which cannot be represented" if parts[part].dim() == 3 else "not a matrix"
            raise FormatError(f"{where}: {_NAMES[part]} {tuple(parts[part].shape)} is {kind}.")
    if is_embedding(name) and MAGNITUDE in parts:
        raise FormatError(f"{where}: DoRA of an embedding cannot be represented.")
    return parts | {part: parts[part].t().contiguous() for part in ("lora_A", "lora_B")}


def _update(where: str, name: str, parts: Mapping[str, Tensor], lora_alpha: float) -> LoRAUpdate:
    return made(where, EmbeddingUpdate if is_embedding(name) else LoRAUpdate, parts, lora_alpha)


def _alpha(path: Path, name: str, r: int, settings: Mapping[str, Any] | None, config: LoRAConfig | None) -> float:
    """lora_alpha of a layer of rank `r`: what `config` says, where there is no configuration."""
    if settings is None:
        assert config is not None
        return patterns.lookup(config.alpha_pattern, name, config.lora_alpha)
    if settings.get("fine_tune_type", "lora") not in ("lora", "dora"):
        raise FormatError(f"{path}: fine_tune_type={settings['fine_tune_type']!r:.40}; only 'lora' and 'dora' can be read.")
    values = settings["lora_parameters"]
    scale, alpha, rank = (values.get(key) for key in ("scale", "alpha", "rank")) if isinstance(values, dict) else (None,) * 3
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= sys.float_info.max / max(r, 1):
        raise FormatError(f"{path}: lora_parameters must say the scale, a positive number; got {scale!r:.40}.")
    if rank is not None and rank != r:
        raise FormatError(f"{path.parent}: layer {name!r} has factors of rank {r}, but {path.name} says rank={rank!r:.40}.")
    if alpha is not None and alpha != r:
        raise FormatError(
            f"{path}: lora_parameters say scale={scale:g} and alpha={alpha!r:.40}; MLX multiplied them once and later "
            f"looked at the scale alone: write the scale that the training had, {scale:g} or scale·alpha / r, and no alpha."
        )
    product = scale * r
    return int(product) if float(product).is_integer() else product
