"""The digest of an adapter: a number that stands for all of its content."""

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from ..config import LoRAConfig
from ..tensors import as_bytes
from .config_of import SETTINGS
from .token_rows import TokenRows
from .updates import LoRAUpdate


def digest(
    settings: LoRAConfig,
    layers: Mapping[str, LoRAUpdate],
    tensors: Mapping[str, Tensor],
    rows: Mapping[str, TokenRows],
    metadata: Mapping[str, str],
) -> str:
    """The SHA-256 of an adapter with these fields, in hexadecimal digits. The order of layers and of names does not count."""
    found = hashlib.sha256()

    def add(*values: object) -> None:
        for value in values:
            text = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            found.update(f"{len(text)}:{text}".encode())
            if isinstance(value, Tensor):
                found.update(as_bytes(value).numpy().data)

    scalars = {field: getattr(settings, field) for field in SETTINGS}
    add(json.dumps(scalars, sort_keys=True), sorted(metadata.items()))
    for name, update in sorted(layers.items()):
        add(name, update.kind, float(update.lora_alpha), update.use_rslora, *update.own_fields())
        for part in update.tensors().items():
            add(*part)
    for name, tensor in sorted(tensors.items()):
        add(name, tensor)
    for name, some in sorted(rows.items()):
        add(name, some.indices, some.values)
    return found.hexdigest()
