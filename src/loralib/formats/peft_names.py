"""What PEFT calls the tensors of an adapter, in its folders and in state dicts of its models, and what the model calls them.

    base_model.model.<L>.lora_A.weight             as `save_pretrained` writes it
    base_model.model.<L>.lora_A.default.weight     as the model has it, with the adapter's name; also within `module` …
    <L>.lora_A.weight                              as other programs write it, if all tensors of the file are named so

A layer that is a target and lies in `modules_to_save` too comes up to three times: under `modules_to_save` and without it,
which is one update, and under `original_module`, where it has no effect.
"""

import re
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from torch import Tensor

from ..errors import FormatError
from ..tensors import same_bits
from .validation import MAGNITUDE

PREFIX = "base_model.model."
LINEAR = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", MAGNITUDE: "lora_magnitude_vector"}
EMBEDDING = LINEAR | {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}
TOKENS, BASE, SAVED, ORIGINAL = "token_adapter", "base_layer", "modules_to_save", "original_module"
ROWS = f"{TOKENS}.trainable_tokens_delta"
WRAPPERS = {TOKENS, BASE, SAVED, ORIGINAL}  # modules that PEFT puts between a model's own

_ADAPTER = r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?"
_FACTOR = re.compile(
    rf"(?P<layer>.+)\.(?:(?P<linear>lora_[AB]){_ADAPTER}\.weight"
    rf"|(?P<embedding>lora_embedding_[AB]){_ADAPTER.replace('adapter', 'of_embedding')}"
    rf"|(?P<magnitude>lora_magnitude_vector){_ADAPTER.replace('adapter', 'of_magnitude')}(?:\.weight)?)"
)
_ROWS = re.compile(rf"(?P<layer>.+)\.{re.escape(ROWS)}{_ADAPTER}")
_AROUND = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # what torch puts around modules


class Sorted(NamedTuple):
    """The tensors of an adapter: the parts of each layer's update, those trained in full, and token rows by layer."""

    factors: dict[str, dict[str, Tensor]]
    tensors: dict[str, Tensor]
    rows: dict[str, Tensor]


def is_factor(key: str) -> bool:
    """Whether a tensor of this name is a part of an update.

    >>> is_factor("model.q_proj.lora_A.default.weight"), is_factor("model.q_proj.lora_B.bias")
    (True, False)
    """
    return _FACTOR.fullmatch(key) is not None


def sort(where: str, stored: Mapping[str, Tensor]) -> Sorted:
    """The tensors by what they are, by the names that the model has for them; `FormatError` for one that is none of them."""
    found = Sorted({}, {}, {})
    names = _own_names(where, stored)
    factors = {key: match for key, name in names.items() if (match := _FACTOR.fullmatch(name))}
    rows = {key: match for key, name in names.items() if key not in factors and (match := _ROWS.fullmatch(name))}
    adapters = _adapters(where, (*factors.values(), *rows.values()))
    for key, tensor in stored.items():
        if factor := factors.get(key):
            _put_factor(where, key, factor, tensor, adapters, found.factors)
        else:
            _put(where, key, names[key], rows.get(key), tensor, adapters, found)
    for layer in [layer for layer, parts in found.factors.items() if not parts]:
        raise FormatError(f"{where}: of layer {layer!r} there is only what PEFT keeps under {ORIGINAL!r}, which has no effect.")
    return found


def _own_names(where: str, keys: Iterable[str]) -> dict[str, str]:
    """The names of the tensors without what PEFT and torch put before and around them, and what PEFT's model lies in."""
    found = {key: _without(key, _AROUND) for key in keys}
    parts = {key: name.partition(PREFIX) for key, name in found.items()}
    known = {key: lead for key, (lead, prefix, own) in parts.items() if prefix and own and (not lead or lead.endswith("."))}
    if not known:
        return found
    usual = next(iter(known.values()))
    if strays := [key for key in found if known.get(key) != usual]:
        raise FormatError(f"{where}: tensor {strays[0]!r} has no PEFT name (those start with {usual + PREFIX!r}).")
    return {key: own for key, (_, _, own) in parts.items()}


def _without(name: str, parts: Set[str]) -> str:
    """A dotted name without some of its parts."""
    own = name.split(".")
    return name if parts.isdisjoint(own) else ".".join(part for part in own if part not in parts)


def _adapters(where: str, matches: Iterable[re.Match[str]]) -> set[str]:
    """The name of the adapter that occurs in the names of tensors, if one does; `FormatError` for several."""
    found = {name for match in matches if (name := match["adapter"] or _last(match, "of_embedding", "of_magnitude"))}
    if len(found) > 1:
        raise FormatError(
            f"{where} holds {len(found)} adapters, {', '.join(map(repr, sorted(found)[:5]))}; save each to a folder of its own "
            "(PEFT's save_pretrained with selected_adapters)."
        )
    return found


def _last(match: re.Match[str], *groups: str) -> str | None:
    """The one of these groups that matched, where the pattern has them."""
    return next((value for group in groups if (value := match.groupdict().get(group))), None)


def _put_factor(
    where: str, key: str, match: re.Match[str], tensor: Tensor, adapters: set[str], found: dict[str, dict[str, Tensor]]
) -> None:
    """Put the tensor `key` of a file among the parts of its layer's update."""
    layer, linear = match["layer"], match["linear"]
    parts = layer.split(".")
    held = found.setdefault(layer if WRAPPERS.isdisjoint(parts) else _layer(parts, adapters), {})
    if ORIGINAL not in parts:
        _once(where, key, held, f"{linear}.weight" if linear else match["embedding"] or match["magnitude"], tensor)


def _put(
    where: str, key: str, name: str, rows: re.Match[str] | None, tensor: Tensor, adapters: set[str], found: Sorted
) -> None:
    """Put the tensor `key` of a file, without its prefix `name`, where it belongs. rows: when it is of token rows."""
    parts = name.split(".")
    if any(part.startswith("lora_") for part in parts):
        raise FormatError(f"{where}: tensor {key!r} belongs to a kind of layer that cannot be represented.")
    elif rows is not None:
        _once(where, key, found.rows, rows["layer"], tensor)
    elif TOKENS in parts and (parts[-3:-1] != [TOKENS, BASE] or WRAPPERS & set(parts[:-3])):
        raise FormatError(f"{where}: tensor {key!r} belongs to trained tokens, and is not their rows.")
    elif ORIGINAL not in parts:
        _once(where, key, found.tensors, _plain_name(parts, adapters), tensor)


def _once(where: str, key: str, held: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in held and not same_bits(held[name], tensor):
        raise FormatError(f"{where}: tensor {key!r} and another are both {name!r}, and differ.")
    held[name] = tensor


def _layer(parts: list[str], adapters: set[str]) -> str:
    """The name of an adapted layer without what `modules_to_save` put into it; what PEFT put around attention stays."""
    if ORIGINAL in parts:
        return ".".join(part for part in parts if part != ORIGINAL)
    return ".".join(_without_saved(parts, adapters))


def _without_saved(parts: list[str], adapters: set[str]) -> list[str]:
    """`parts` of a name without `modules_to_save` and, behind it, the name of the adapter."""
    own = []
    for before, part in zip(["", *parts], parts, strict=False):
        if part != SAVED and not (before == SAVED and part in {"default", *adapters}):
            own.append(part)
    return own


def _plain_name(parts: list[str], adapters: set[str]) -> str:
    """The model's own name of a tensor that PEFT's wrappers hold."""
    return ".".join(part for part in _without_saved(parts, adapters) if part not in WRAPPERS)
