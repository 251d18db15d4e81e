"""What an adapter is, in words, for people who want to know what they have."""

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from .token_rows import TokenRows
from .updates import LoRAUpdate

_FEW = 5  # different things that are named one by one


def num_parameters(layers: Mapping[str, LoRAUpdate]) -> int:
    """How many numbers the tensors of the updates hold."""
    return sum(tensor.numel() for update in layers.values() for tensor in update.tensors().values())


def line(layers: Mapping[str, LoRAUpdate], tensors: Mapping[str, Tensor], rows: Mapping[str, TokenRows]) -> str:
    """An adapter with these fields, in a line.

    >>> line({}, {}, {})
    '0 layers, 0 parameters, 0 extra tensors'
    """
    ranks = sorted({update.r for update in layers.values()})
    few = f"from {ranks[0]} to {ranks[-1]}" if len(ranks) > _FEW else f"in {{{', '.join(map(str, ranks))}}}"
    of_rank = f", r={ranks[0]}" if len(ranks) == 1 else f", r {few}" if ranks else ""
    indices = sum(len(some.indices) for some in rows.values())
    parts = [f"{_count(len(layers), 'layer')}{of_rank}", f"{num_parameters(layers):,} parameters"]
    parts += [_count(len(tensors), "extra tensor")] + [_count(indices, "token row")] * bool(rows)
    return ", ".join(parts)


def describe(
    layers: Mapping[str, LoRAUpdate],
    tensors: Mapping[str, Tensor],
    rows: Mapping[str, TokenRows],
    metadata: Mapping[str, str],
    source: str,
) -> dict[str, str]:
    """The facts about an adapter with these fields by what they are about; what does not apply is left out."""
    updates = list(layers.values())
    modules = sorted({name.rpartition(".")[0] or name for name in tensors})
    dora = sum(update.is_dora for update in updates)
    rslora = sum(update.use_rslora for update in updates)
    factors = [tensor for update in updates for tensor in update.tensors().values()]
    extra = sum(tensor.numel() for tensor in tensors.values())
    indices = sum(len(some.indices) for some in rows.values())
    everything = [*factors, *tensors.values(), *(some.values for some in rows.values())]
    others = dict(metadata)
    facts = {
        "from": source,
        "base model": others.pop("base_model_name_or_path", ""),
        "r": _counted(update.r for update in updates),
        "lora_alpha": _counted(update.lora_alpha for update in updates),
        "scaling": _counted(update.scaling for update in updates),
        "rsLoRA": f"{rslora} of {len(updates)} layers scale by lora_alpha / √r" if rslora else "",
        "DoRA": f"{dora} of {len(updates)} layers" if dora else "",
        "targets": _by_last_name(layers, "layer"),
        "parameters": f"{sum(t.numel() for t in factors):,} in factors" + (f", {extra:,} in extra tensors" if extra else ""),
        "extra": ", ".join(modules) if len(modules) <= _FEW else _by_last_name(modules, "module"),
        "token rows": f"{indices} of {', '.join(rows)}" if rows else "",
        "stored": f"{sum(t.nbytes for t in everything):,} bytes, {_counted(str(t.dtype)[6:] for t in everything)}",
    }
    facts |= {f"metadata {key}" if key in facts else key: value for key, value in others.items()}
    return {what: fact for what, fact in facts.items() if fact}


def last_name(name: str) -> str:
    """The last part of a name that is not a number: what layers of one kind have in common.

    >>> last_name("blocks.0.to_out.0")
    'to_out'
    """
    return next((part for part in reversed(name.split(".")) if not part.isdigit()), name)


def _by_last_name(names: Iterable[str], what: str) -> str:
    """How many there are of each last name.

    >>> _by_last_name(["0.query", "1.query", "head"], "layer")
    'head (1 layer), query (2 layers)'
    """
    found = sorted(Counter(last_name(name) for name in names).items())
    return ", ".join(f"{name} ({_count(n, what)})" for name, n in found)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _counted(values: Iterable[object]) -> str:
    """The different values, the most frequent first, with how often each comes where there are several; of many numbers, the
    smallest and the largest.

    >>> _counted([8, 8, 4]), _counted(range(1, 9))
    ('8 (2), 4 (1)', '1 to 8 (8 different)')
    """
    values = list(values)
    found = Counter(f"{value:g}" if isinstance(value, float) else str(value) for value in values).most_common()
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(found) > _FEW and len(numbers) == len(values):
        return f"{min(numbers):g} to {max(numbers):g} ({len(found)} different)"
    return found[0][0] if len(found) == 1 else ", ".join(f"{value} ({n})" for value, n in found)
