"""PEFT's folder: `adapter_config.json` and `adapter_model.safetensors` (`adapter_model.bin` before version 0.7).

Tensor names, for a layer L and a tensor T trained in full:

    base_model.model.<L>.lora_A.weight            (r, in), or (r, in, *kernel) of a convolution
    base_model.model.<L>.lora_B.weight            (out, r), or (out, r, 1…)
    base_model.model.<L>.lora_embedding_A         (r, num_embeddings)
    base_model.model.<L>.lora_embedding_B         (embedding_dim, r)
    base_model.model.<L>.lora_magnitude_vector    (out,), or (1, out, 1…) of a convolution: DoRA
    base_model.model.<L>.base_layer.bias          the bias of an adapted layer, where `bias` is not "none"; its weight, resized
    base_model.model.<M>.base_layer….lora_A.weight  of experts in a module M: see `peft_experts`
    base_model.model.<T>                          tensors of `modules_to_save`, other biases
    base_model.model.<L>.token_adapter.trainable_tokens_delta     rows `trainable_token_indices` of L's weight, again
    base_model.model.<L>.token_adapter.base_layer.weight          the whole of that weight, resized

Before version 0.3 `enable_lora` chose slices of a fused projection, as loralib 0.1 does: A (n·r, in), B (n·out/N, r, 1).

What PEFT holds otherwise: an update of slices becomes the plain one with the same ΔW, and those of an
`nn.MultiheadAttention` one for its packed projection (see `peft_attention`). What it computes otherwise or not at all is
refused: grouped and transposed convolutions, bilinear layers. `peft_config` reads and writes the configuration.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import patterns
from ..adapters.adapter import Adapter
from ..adapters.embedding_update import EmbeddingUpdate
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.fused_update import FusedUpdate
from ..adapters.token_rows import TokenRows
from ..adapters.updates import LoRAUpdate, ProjectionUpdate
from ..choices import ExpertLayout
from ..config import LoRAConfig
from ..errors import ConfigError, FormatError
from ..storage.atomic import write_together
from ..storage.safetensors import tensor_bytes
from ..tensors import same_bits
from . import peft_experts, peft_names
from .opened import Opened
from .peft_attention import apart, configured, joined, plain
from .peft_config import METADATA, configuration, configuration_of, refuse_costly, refuse_unknown
from .peft_names import BASE, EMBEDDING, LINEAR, PREFIX, ROWS, WRAPPERS
from .validation import FACTORS, common_form, from_shapes_of_peft, in_shapes_of_peft, kind_of, made, named, parts_of

CONFIG, TENSORS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
FILES = (TENSORS, CONFIG)  # in the order of writing: without the configuration the tensors are not read
INDEX = f"{TENSORS}.index.json"
EXPECTED = f"a PEFT folder has {CONFIG} and {TENSORS}"


def detect(opened: Opened) -> bool:
    """Whether it is a folder with PEFT's configuration file, or the file of tensors in one."""
    return (_folder(opened) / CONFIG).path.is_file()


def _folder(opened: Opened) -> Opened:
    path = opened.path
    return Opened(path.parent) if path.name in (TENSORS, PICKLED) and path.is_file() else opened


def read(opened: Opened, config: LoRAConfig | None = None, layout: ExpertLayout | None = None) -> Adapter:
    """The adapter in the folder. layout: that of its experts, where nothing in it says so.

    `FormatError` when it is damaged or asks for what cannot be represented."""
    folder = _folder(opened)
    path, values = folder.path, (folder / CONFIG).json()
    refuse_unknown(path / CONFIG, values)
    try:
        found = configuration(values)
    except (ConfigError, TypeError, OverflowError) as error:
        raise FormatError(f"{path / CONFIG}: {error}") from None
    file = _file(folder) if opened.path.is_dir() else opened
    where = str(file)
    factors, tensors, rows = peft_names.sort(where, file.tensors())
    refuse_costly(path / CONFIG, found, list(factors))
    experts: dict[str, LoRAUpdate] = {}
    if found.target_parameters:
        experts, factors = peft_experts.taken(where, factors, found, values, layout)  # type: ignore[assignment]
    layers = apart({name: _update(where, name, parts, found) for name, parts in factors.items()}) | experts
    if not layers:
        raise FormatError(f"{where} holds no LoRA factors; it is not LoRA adapter.")
    dora = [update.is_dora for update in layers.values()]
    if any(dora) != bool(values.get("use_dora")) or (any(dora) and not all(dora)):
        raise FormatError(f"{path}: use_dora={values.get('use_dora')}, but {sum(dora)} of {len(dora)} layers have magnitudes.")
    metadata = {key: str(values[key]) for key in METADATA if values.get(key) is not None}
    of_tokens = _token_rows(file.path, rows, values.get("trainable_token_indices"))
    return Adapter(found, layers, tensors, metadata, of_tokens, f"PEFT folder {path.name or path}")


def _token_rows(path: Path, rows: Mapping[str, Tensor], indices: Any) -> dict[str, TokenRows]:
    """`rows` with the numbers that the configuration gives: one list for all, or one for each module by the end of its name.
    A head that is tied to an embedding may repeat the embedding's rows, and go without numbers of its own."""
    chosen = {name: _of_module(name, indices) for name in rows}
    for name, values in rows.items():
        twins = [chosen[other] for other in rows if chosen[other] is not None and same_bits(rows[other], values)]
        chosen[name] = twins[0] if chosen[name] is None and twins else chosen[name]
    found = {}
    for name, values in rows.items():
        try:
            found[f"{name}.weight"] = TokenRows(tuple(chosen[name]), values)
        except (ConfigError, TypeError) as error:
            config = path.with_name(CONFIG)
            raise FormatError(f"{config}: trainable_token_indices={chosen[name]!r:.80} for {name!r}: {error}") from None
    asked = indices.values() if isinstance(indices, dict) else [indices]
    if missing := [numbers for numbers in asked if numbers and numbers not in chosen.values()]:
        raise FormatError(f"{path}: trainable_token_indices={missing[0]!r:.80}, but {path.name} holds no token rows for them.")
    return found


def _of_module(name: str, indices: Any) -> Any:
    if not isinstance(indices, dict):
        return indices
    return next((numbers for ending, numbers in indices.items() if patterns.ends_with(name, ending)), None)


def write(adapter: Adapter, path: Path, layout: ExpertLayout = "rank-major") -> None:
    """Write the folder `path`, made when it is missing. layout: of the factors of experts."""
    if not adapter.layers:
        raise FormatError("The adapter adapts no layer, and PEFT reads no such adapter. Nothing was written.")
    for name in (*adapter.layers, *adapter.tensors, *adapter.rows):
        if reserved := [part for part in name.split(".") if part in WRAPPERS or part.startswith("lora_")]:
            raise FormatError(f"{name!r}: PEFT gives the name {reserved[0]!r} a meaning of its own. Nothing was written.")
    experts = {name: update for name, update in adapter.layers.items() if isinstance(update, ExpertsUpdate)}
    others = {name: update for name, update in adapter.layers.items() if name not in experts}
    layers = joined({name: _representable(name, update) for name, update in others.items()})
    values = configuration_of(adapter, layers | experts) | (peft_experts.said(layout) if experts else {})
    config = json.dumps(values, indent=2, sort_keys=True) + "\n"
    tensors = peft_experts.stored(experts, layout)
    for name, update in layers.items():
        names = EMBEDDING if isinstance(update, EmbeddingUpdate) else LINEAR
        tensors |= named(name, in_shapes_of_peft(update), names)
    of_tokens = {name.removesuffix(".weight"): rows.values for name, rows in adapter.rows.items()}
    tensors |= {f"{name}.{ROWS}": values for name, values in of_tokens.items()}
    wrapped = {plain(name): f"{name}.{BASE}" for name in layers} | {n: f"{n}.{peft_names.TOKENS}.{BASE}" for n in of_tokens}
    for name, tensor in adapter.tensors.items():
        module, _, leaf = name.rpartition(".")
        tensors[".".join(part for part in (wrapped.get(module, module), leaf) if part)] = tensor
    content = tensor_bytes({PREFIX + name: tensor for name, tensor in tensors.items()}, {"format": "pt"})
    path.mkdir(parents=True, exist_ok=True)
    write_together(dict(zip([path / name for name in FILES], [content, config.encode()], strict=True)))


def _representable(name: str, update: LoRAUpdate) -> LoRAUpdate:
    """`update` in a form that PEFT computes with; `FormatError` when it has none."""
    return update if isinstance(update, ProjectionUpdate) else common_form(name, update, "PEFT")


def _file(folder: Opened) -> Opened:
    """The file with the tensors; before version 0.7 PEFT pickled them, and where both are there it reads the first."""
    for name in (TENSORS, PICKLED):
        if (folder / name).path.is_file():
            return folder / name
    if (folder / INDEX).path.is_file():
        raise FormatError(
            f"{folder} has its tensors in several files ({INDEX}), which PEFT does not read; save them as one {TENSORS}."
        )
    raise FormatError(f"{folder} has {CONFIG} but no {TENSORS}; fetch or save the adapter again.")


def _update(file: str, name: str, stored: dict[str, Tensor], config: LoRAConfig) -> LoRAUpdate:
    update = update_of(file, name, stored, config)
    if update.r != (r := patterns.lookup(config.rank_pattern, configured(name), config.r)):
        raise FormatError(f"{file}: layer {name!r} has factors of rank {update.r}, but {CONFIG} says r={r}.")
    return update


def update_of(file: str, name: str, stored: dict[str, Tensor], config: LoRAConfig) -> LoRAUpdate:
    """The update that the tensors `stored` of layer `name` are, by PEFT's names, scaled as `config` says."""
    where = f"{file}: layer {name!r}"
    embeds = any(EMBEDDING[factor] in stored for factor in FACTORS)
    without = [LINEAR[factor] for factor in FACTORS] if embeds else ()
    parts = from_shapes_of_peft(parts_of(where, stored, EMBEDDING if embeds else LINEAR, without))
    name, slices = configured(name), {}
    kind = EmbeddingUpdate if embeds else kind_of(parts)
    if not embeds and (mask := patterns.lookup(config.masks, name, ())):
        kind, slices = FusedUpdate, _sliced(where, parts, mask)
    lora_alpha = patterns.lookup(config.alpha_pattern, name, config.lora_alpha)
    return made(where, kind, parts, lora_alpha, config.use_rslora, **slices)


def _sliced(where: str, parts: dict[str, Tensor], mask: Sequence[bool]) -> dict[str, Any]:
    """The fields of an update of slices; its second factor, once stored as a convolution's, becomes a matrix."""
    B = parts["lora_B"]
    width, rest = divmod(len(B) if B.dim() else 0, sum(mask))
    if rest:
        raise FormatError(f"{where}: lora_B {tuple(B.shape)} cannot be cut into the slices of enable_lora={list(mask)}.")
    if B.dim() > 2 and B.shape[2:].numel() == 1:
        parts["lora_B"] = B.flatten(1)
    return {"enable_lora": tuple(mask), "widths": (width,) * len(mask)}
