"""Where in a network an adapter changes it most: ‖ΔW‖_F by the number of the block and by the kind of layer."""

import math
from collections.abc import Iterable

from ..adapters.adapter import Adapter, check_adapter
from .products import norms, products

Place = tuple[int | None, str]


def norms_by_place(adapter: Adapter) -> dict[Place, float]:
    """Measure where in the network the update is large.

    Args:
        adapter: The adapter.

    Returns:
        ‖ΔW‖_F by (depth, kind), kinds in the adapter's order, each by depth. The depth is the first number in a layer's name,
        None where it has none; the kind is its name within the block, as short as separates the kinds, `kind[i]` for slice i of
        a fused projection. Layers of one place are taken together.

    Raises:
        AlgebraError: When the factors of a layer are not finite.
        ArgumentError: When `adapter` is not an adapter.

    Example:
        >>> update = lora.LoRAUpdate(torch.eye(2, 3), torch.eye(4, 2), lora_alpha=2)
        >>> layers = {f"model.layers.{i}.self_attn.{kind}": update for i in (0, 10) for kind in ("q_proj", "v_proj")}
        >>> found = lora.analysis.norms_by_place(lora.Adapter(lora.LoRAConfig(), layers))
        >>> list(found), round(found[0, "q_proj"], 3)
        ([(0, 'q_proj'), (10, 'q_proj'), (0, 'v_proj'), (10, 'v_proj')], 1.414)
    """
    check_adapter(adapter)
    found = norms(products(adapter))
    kinds = kinds_of(found)
    order = {kind: i for i, kind in enumerate(dict.fromkeys(kinds.values()))}
    places: dict[Place, list[float]] = {}
    for name, norm in found.items():
        places.setdefault((depth_of(name), kinds[name]), []).append(norm)
    ordered = sorted(places, key=lambda place: (order[place[1]], -1 if place[0] is None else place[0]))
    return {place: math.hypot(*places[place]) for place in ordered}


def depth_of(name: str) -> int | None:
    """The first number among the parts of a layer's name, which is its block's.

    >>> depth_of("encoder.layer.11.attention.self.query"), depth_of("lm_head")
    (11, None)
    """
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def kinds_of(names: Iterable[str]) -> dict[str, str]:
    """What the layers are in their blocks: by name, the shortest end of the name that no layer of another kind has.

    >>> kinds_of(["encoder.0.self.q", "encoder.1.self.q", "encoder.0.cross.q", "encoder.0.out"])
    {'encoder.0.self.q': 'self.q', 'encoder.1.self.q': 'self.q', 'encoder.0.cross.q': 'cross.q', 'encoder.0.out': 'out'}
    """
    patterns = {name: _without_numbers(name) for name in names}
    different = sorted(set(patterns.values()))
    shortest = {pattern: _shortest_end(pattern, different) for pattern in different}
    return {name: ".".join(shortest[pattern]) for name, pattern in patterns.items()}


def _without_numbers(name: str) -> tuple[str, ...]:
    return tuple("*" if part.isdecimal() else part for part in name.split("."))


def _shortest_end(pattern: tuple[str, ...], others: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The shortest end of a pattern, with a word in it, by which no other ends."""
    last = max((i for i, part in enumerate(pattern) if part != "*"), default=0)
    for start in range(last, 0, -1):
        if not any(other != pattern and other[-(len(pattern) - start) :] == pattern[start:] for other in others):
            return pattern[start:]
    return pattern
