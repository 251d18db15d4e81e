"""Files with custom names, through a map from their names to these and back:

    <layer>.lora_A, <layer>.lora_B                         (r, in) and (out, r), or those of a convolution, judged by shape
    <layer>.lora_A.weight, <layer>.lora_B.weight           the same, whatever the shapes say
    <layer>.lora_A.T, <layer>.lora_B.T                     their transposes: (in, r) and (r, out)
    all of these with a first dimension E                  of E experts; 1 for a factor that all share
    <layer>.lora_embedding_A, <layer>.lora_embedding_B     (r, num_embeddings) and (embedding_dim, r)
    <layer>.lora_magnitude                                 (out,), of DoRA
    <layer>.alpha                                          one number; without it that of the configuration given, else the rank
    anything else                                          a tensor trained in full, by its name in the model

Both orientations fit a layer that is as wide as it is high; `lora_A` and `lora_B` are refused for it where the rank would not
be below the width, as with other programs' transposes. Files written here say in their metadata that nothing is transposed.

A map is {regular expression: replacement}, of which the first that matches a whole name counts, or a function of one name.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from .. import patterns
from ..adapters.adapter import Adapter
from ..adapters.embedding_update import EmbeddingUpdate
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.updates import LoRAUpdate
from ..arguments import check_mapping
from ..config import LoRAConfig
from ..errors import FormatError
from ..storage.atomic import write_atomically
from ..storage.safetensors import tensor_bytes
from .opened import Opened
from .validation import FACTORS, PARTS, alpha_of, alpha_tensor, by_layer, common_form, kind_of, made, named, parts_of, refuse

KeyMap = Mapping[str, str] | Callable[[str], str]

_LINEAR = {part: part for part in PARTS}
_EMBEDDING = _LINEAR | {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}
_AS_SAID, _TRANSPOSED = ({factor: f"{factor}.{how}" for factor in FACTORS} for how in ("weight", "T"))
_PARTS = {*_LINEAR.values(), *_EMBEDDING.values(), *_AS_SAID.values(), *_TRANSPOSED.values(), "alpha"}
_NOTE, _AS_WRITTEN = "loralib_factors", "(r, in) and (out, r)"
_ENDS = tuple(f".{part}" for part in _PARTS)


def check_keys(keys: object) -> None:
    """`ArgumentError` unless `keys` is a key map."""
    if not callable(keys) or isinstance(keys, type | nn.Module):
        check_mapping(keys, "keys", str, "a replacement (a str)")


def read(opened: Opened, keys: KeyMap, config: LoRAConfig | None = None) -> Adapter:
    """The adapter in a file of tensors whose names `keys` turns into those above. `FormatError` for a name that it does not
    know, for two that become one, and for what is not an adapter."""
    path, stored = opened.path, opened.tensors()
    new = mapped(path, stored, keys)
    factors, others = by_layer(str(path), {new[key]: tensor for key, tensor in stored.items()}, _PARTS)
    stated = opened.is_safetensors and opened.metadata.get(_NOTE) == _AS_WRITTEN
    layers = {name: _update(f"{path}: layer {name!r}", name, parts, config, stated) for name, parts in factors.items()}
    if not layers:
        raise FormatError(f"{path}: the key map finds no factors; they must become <layer>.lora_A and <layer>.lora_B.")
    tensors = {new[key]: tensor for key, tensor in stored.items() if new[key] in others}
    return Adapter(config or LoRAConfig(), layers, tensors, source=f"{path.name}, by a key map")


def write(adapter: Adapter, path: Path, keys: KeyMap) -> None:
    """Write the safetensors file `path`, in which every tensor has the name that `keys` makes of that above."""
    refuse("token rows", adapter.rows, "A file with a key map")
    refuse("metadata", adapter.metadata, "A file with a key map")
    tensors: dict[str, Tensor] = {}
    for name, update in adapter.layers.items():
        plain = update if isinstance(update, ExpertsUpdate) else common_form(name, update, "a file with a key map")
        if plain.use_rslora:
            raise FormatError(
                f"{name!r} is scaled by lora_alpha / √r, which a file with a key map does not say. Nothing was written."
            )
        tensors |= named(name, plain.tensors(), _EMBEDDING if isinstance(plain, EmbeddingUpdate) else _LINEAR)
        tensors[f"{name}.alpha"] = alpha_tensor(plain.lora_alpha)
    refuse("tensors named as factors", [name for name in adapter.tensors if name.endswith(_ENDS)], "A file with a key map")
    tensors |= adapter.tensors
    new = mapped(path, tensors, keys)
    write_atomically(
        path, tensor_bytes({new[key]: tensor for key, tensor in tensors.items()}, {"format": "pt", _NOTE: _AS_WRITTEN})
    )


def mapped(path: Path, names: Iterable[str], keys: KeyMap) -> dict[str, str]:
    """What `keys` makes of each name; `FormatError` for those that it does not know, and for two that become one."""
    new = keys if callable(keys) else _replacing(keys)
    found: dict[str, str] = {}
    for name in names:
        renamed = new(name)
        if not isinstance(renamed, str) or not renamed:
            raise FormatError(f"{path}: the key map makes {renamed!r} of {name!r}; it must give every tensor a name.")
        found[name] = renamed
    if len(set(found.values())) < len(found):
        twice = next(new for new in found.values() if list(found.values()).count(new) > 1)
        raise FormatError(f"{path}: the key map gives several tensors the name {twice!r}.")
    return found


def _replacing(keys: Mapping[str, str]) -> Callable[[str], str]:
    compiled = [(patterns.compile_pattern(pattern, "keys"), replacement) for pattern, replacement in keys.items()]

    def new(name: str) -> str:
        for pattern, replacement in compiled:
            if match := pattern.fullmatch(name):
                try:
                    return match.expand(replacement)
                except (re.error, IndexError) as error:
                    raise FormatError(f"keys: the replacement {replacement!r} cannot be used: {error}.") from None
        return ""

    return new


def _update(where: str, name: str, stored: Mapping[str, Tensor], config: LoRAConfig | None, stated: bool) -> LoRAUpdate:
    embeds = any(_EMBEDDING[part] in stored for part in FACTORS)
    parts = parts_of(where, stored, _EMBEDDING, without=FACTORS) if embeds else _factors(where, stored, stated)
    A = parts["lora_A"]
    kind = EmbeddingUpdate if embeds else ExpertsUpdate if _of_experts(parts) else kind_of(parts)
    r = A.shape[kind is ExpertsUpdate] if A.dim() else 1
    default = patterns.lookup(config.alpha_pattern, name, config.lora_alpha) if config else max(r, 1)
    lora_alpha = alpha_of(where, stored.get("alpha"), default)
    return made(where, kind, parts, lora_alpha, bool(config and config.use_rslora))


def _of_experts(parts: Mapping[str, Tensor]) -> bool:
    """Whether factors of three dimensions are of experts: not of a convolution, whose B (out, r, 1) has the rank of A."""
    A, B = parts["lora_A"], parts["lora_B"]
    return A.dim() == B.dim() == 3 and not (B.shape[2] == 1 and len(A) == B.shape[1])


def _factors(where: str, stored: Mapping[str, Tensor], sure: bool) -> dict[str, Tensor]:
    """The parts of an update, in the orientation that their names state; `FormatError` where names state none and shapes do not
    decide. sure: the factors are not transposed, if names state nothing."""
    stated = next((names for names in (_AS_SAID, _TRANSPOSED) if any(name in stored for name in names.values())), None)
    names = _LINEAR | (stated or {})
    others = [name for known in (_LINEAR, _AS_SAID, _TRANSPOSED) for part, name in known.items() if part in FACTORS]
    parts = parts_of(where, stored, names, without=[name for name in others if name not in names.values()])
    A, B = parts["lora_A"], parts["lora_B"]
    if stated is _TRANSPOSED:
        if A.dim() not in (2, 3) or B.dim() != A.dim():
            raise FormatError(f"{where}: {_TRANSPOSED['lora_A']} {tuple(A.shape)} and {tuple(B.shape)} are not matrices.")
        return parts | {"lora_A": A.mT.contiguous(), "lora_B": B.mT.contiguous()}
    fits_transposed = A.dim() == B.dim() in (2, 3) and A.shape[-1] == B.shape[-2] and (A.dim() == 2 or _of_experts(parts))
    if stated is None and not sure and fits_transposed and (A.shape[-2] != B.shape[-1] or A.shape[-2] >= A.shape[-1]):
        raise FormatError(
            f"{where} has factors {tuple(A.shape)} and {tuple(B.shape)}, which look like transposes, (in, r) and (r, out); let "
            f"the key map make {_TRANSPOSED['lora_A']} and {_TRANSPOSED['lora_B']} of them if they are, and "
            f"{_AS_SAID['lora_A']} and {_AS_SAID['lora_B']} if not."
        )
    return parts
