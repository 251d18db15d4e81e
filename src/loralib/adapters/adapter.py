"""An adapter as a value: the updates of its layers and its extra tensors, without a model.

    Adapter = {layer name: LoRAUpdate} + {tensor name: tensor trained in full}
              + {tensor name: rows of it that were trained} + the settings that layers do not say

Names are those of the model that was adapted. An adapter knows no modules: `extract` makes one from a model, `attach` puts
one on a model, and the formats read and write it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import patterns
from ..arguments import ADAPTER, check_device, check_dtype, check_mapping, check_name, wrong
from ..config import LoRAConfig, python_value
from ..errors import ConfigError, TargetError
from ..tensors import same_bits
from . import algebra, summary, sums
from .config_of import ConfigField, described, united_settings
from .digest import digest
from .parts import check_parts, renamed
from .token_rows import TokenRows
from .updates import LoRAUpdate

T = TypeVar("T")

Rename = Mapping[str, str] | Callable[[str], str]


@dataclass(frozen=True, eq=False)
class Adapter:
    """The update of each adapted layer, the tensors that were trained in full, and a configuration.

    config: injected, it gives a model the same layers. What it says of ranks, scalings and targets is computed from `layers`;
    of a configuration that is given only `settings` are kept: dropout, biases, `modules_to_save` and `fan_in_fan_out`.
    layers: by layer name. tensors: by tensor name, such as `classifier.weight`. metadata: what else a format says;
    PEFT's knows `base_model_name_or_path`, `task_type` and `revision`. rows: rows of tensors, by the tensor's name.
    source: where it was read from, in words; no part of the value.

    Adapters are values: `a == b` when everything but `source` is the same to the last bit, and no operation changes one.
    Tensors are shared between an adapter and those made from it; do not write into them.

    >>> layers = {"proj": LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
    >>> adapter = Adapter(LoRAConfig(r=2, lora_alpha=4, target_modules=["proj"]), layers)
    >>> adapter
    Adapter(1 layer, r=2, 16 parameters, 0 extra tensors)
    >>> adapter.delta("proj").shape
    torch.Size([5, 3])
    >>> total = 0.5 * adapter + 0.5 * adapter
    >>> total.layers["proj"].r, torch.equal(total.delta("proj"), adapter.delta("proj"))
    (4, True)
    """

    config: ConfigField = ConfigField()  # noqa: RUF009 - a descriptor
    layers: Mapping[str, LoRAUpdate] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, TokenRows] = field(default_factory=dict)
    source: str = ""
    settings: LoRAConfig = field(init=False)

    def __post_init__(self) -> None:
        check_parts(self.layers, self.tensors, self.metadata, self.rows)
        for name in ("layers", "tensors", "metadata", "rows"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __repr__(self) -> str:
        return f"Adapter({summary.line(self.layers, self.tensors, self.rows)})"

    def __reduce__(self) -> tuple[object, ...]:
        parts = (dict(self.layers), dict(self.tensors), dict(self.metadata), dict(self.rows))
        return Adapter, (self.settings, *parts, self.source)

    @cached_property
    def _described(self) -> LoRAConfig:
        return described(self.settings, self.layers)

    def _with(self, **changes: Any) -> "Adapter":
        """The same adapter with other fields; spares describing layers that are replaced."""
        return replace(self, **{"config": self.settings, **changes})

    # --- equality ---------------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Adapter):
            return NotImplemented
        mine, its = ((a.settings, a.metadata, a.layers, a.rows, a.tensors.keys()) for a in (self, other))
        return mine == its and all(same_bits(tensor, other.tensors[name]) for name, tensor in self.tensors.items())

    def __hash__(self) -> int:
        return hash((self.settings, frozenset(self.layers.items()), frozenset(self.tensors)))

    def digest(self) -> str:
        """The SHA-256 of the content, in hexadecimal digits: equal adapters have equal ones, in every process and on every
        device. `source` is left out.

        >>> Adapter(LoRAConfig(), {}).digest() == Adapter(LoRAConfig(), {}, source="a file").digest()
        True
        """
        return digest(self.settings, self.layers, self.tensors, self.rows, self.metadata)

    # --- what it says -----------------------------------------------------------------------------------------------

    def num_parameters(self) -> int:
        """How many numbers the factors hold (extra tensors not counted, as the paper counts), DoRA's magnitudes included."""
        return summary.num_parameters(self.layers)

    def delta(self, name: str) -> Tensor:
        """ΔW of the layer `name`, shape (out, in) for a linear one, in at least float32; `TargetError` when it is not adapted,
        `AlgebraError` for a DoRA update, whose effect depends on the weight."""
        check_name(name, "name")
        if name not in self.layers:
            raise TargetError(f"{name!r} is not adapted. Nearest names: {patterns.nearest(name, self.layers)}.")
        return self.layers[name].delta()

    def summary(self) -> str:
        """What the adapter is, in a few lines: see `facts`.

        >>> layers = {"0.proj": LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
        >>> print(Adapter(LoRAConfig(r=2, lora_alpha=4), layers, metadata={"task_type": "SEQ_CLS"}).summary())
        r            2
        lora_alpha   4
        scaling      2
        targets      proj (1 layer)
        parameters   16 in factors
        stored       64 bytes, float32
        task_type    SEQ_CLS
        """
        return "\n".join(f"{what:<12} {fact}" for what, fact in self.facts().items())

    def facts(self) -> dict[str, str]:
        """What the adapter is, in words: source, base model, ranks, alphas, targets, counts, dtypes, bytes and metadata."""
        return summary.describe(self.layers, self.tensors, self.rows, self.metadata, self.source)

    def all_tensors(self) -> Iterable[Tensor]:
        """Every tensor that the adapter holds."""
        for update in self.layers.values():
            yield from update.tensors().values()
        yield from self.tensors.values()
        yield from (rows.values for rows in self.rows.values())

    # --- other tensors, other names ---------------------------------------------------------------------------------

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Adapter":
        """The same adapter with its tensors in another dtype or on another device."""

        check_dtype(dtype)
        check_device(device)

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        layers = {
            name: update.with_tensors({key: move(tensor) for key, tensor in update.tensors().items()})
            for name, update in self.layers.items()
        }
        rows = {name: replace(rows, values=move(rows.values)) for name, rows in self.rows.items()}
        return self._with(layers=layers, tensors={name: move(t) for name, t in self.tensors.items()}, rows=rows)

    def with_metadata(self, metadata: Mapping[str, str]) -> "Adapter":
        """The same adapter with `metadata` added to what it has.

        >>> Adapter(LoRAConfig(), {}).with_metadata({"task_type": "SEQ_CLS"}).metadata["task_type"]
        'SEQ_CLS'
        """
        return self._with(metadata={**self.metadata, **metadata})

    def rename(self, names: Rename) -> "Adapter":
        """The same adapter for a model that has other names. names: {module: new name}, which renames all that lies in the
        module (the longest fitting one counts, and "" stands for the model itself), or a function of one name.

        Raises `TargetError` when an entry fits nothing, or two things would have one name.

        >>> layers = {"unet.mid.to_q": LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
        >>> adapter = Adapter(LoRAConfig(r=2), layers)
        >>> list(adapter.rename({"unet": ""}).layers), list(adapter.rename({"": "pipe"}).layers)
        (['mid.to_q'], ['pipe.unet.mid.to_q'])
        """
        if not callable(names) or isinstance(names, type | nn.Module):
            check_mapping(names, "names", str, "a new name (a str)")
        new = names if callable(names) else patterns.renaming(names, [*self.layers, *self.tensors, *self.rows])
        layers, tensors, rows = renamed(new, self.layers), renamed(new, self.tensors), renamed(new, self.rows)
        modules = tuple(dict.fromkeys(filter(None, map(new, self.settings.modules_to_save))))
        settings = replace(self.settings, modules_to_save=modules)
        return self._with(config=settings, layers=layers, tensors=tensors, rows=rows)

    def part(self, module: str) -> "Adapter":
        """What the adapter changes in `module`, by the names within it; `TargetError` when that is nothing.

        >>> layers = {f"{part}.to_q": LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4) for part in ("unet", "text")}
        >>> list(Adapter(LoRAConfig(r=2), layers).part("unet").layers)
        ['to_q']
        """

        check_name(module, "module")
        within = patterns.renaming({module: ""}, [*self.layers, *self.tensors, *self.rows], "part")

        def inside(values: Mapping[str, T]) -> dict[str, T]:
            return {name: value for name, value in values.items() if patterns.within(name, [module])}

        kept = self._with(layers=inside(self.layers), tensors=inside(self.tensors), rows=inside(self.rows))
        return kept.rename(within)

    # --- arithmetic -------------------------------------------------------------------------------------------------

    def truncate(self, r: int | None = None, energy: float | None = None) -> "Adapter":
        """The closest adapter whose layers have rank `r` at most, or the smallest rank that keeps the share `energy` of
        ‖ΔW‖² of each (with both, the smaller of the two). Layers of no higher rank stay as they are.

        Computed by an SVD of B·A that never forms it. Raises `ConfigError` when neither is given or `r` is not a rank,
        `AlgebraError` for an `energy` that is not a share, or factors that are not finite.

        >>> layers = {"proj": LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
        >>> Adapter(LoRAConfig(r=2), layers).truncate(energy=0.99)
        Adapter(1 layer, r=1, 8 parameters, 0 extra tensors)
        """
        if r is None and energy is None:
            raise ConfigError("truncate() needs a rank r, or the share of the squared norm to keep, such as energy=0.99.")
        return self._with_each(lambda update: algebra.truncated(update, r, energy))

    def scale(self, c: float) -> "Adapter":
        """Every ΔW times `c`, of any sign; c = 1 gives the adapter itself. What was trained in full (a head, say)
        holds values, not changes, and stays as it is. `AlgebraError` for DoRA, unless c = 1."""
        return self._with_each(lambda update: algebra.scaled(update, c))

    def _with_each(self, operation: Callable[[LoRAUpdate], LoRAUpdate]) -> "Adapter":
        layers = {}
        for name, update in self.layers.items():
            with sums.in_layer(name):
                layers[name] = operation(update)
        return self.with_layers(layers)

    def with_layers(self, layers: Mapping[str, LoRAUpdate]) -> "Adapter":
        """The same adapter with other updates."""
        if all(layers.get(name) is update for name, update in self.layers.items()) and len(layers) == len(self.layers):
            return self
        return self._with(layers=layers, source="")

    def __mul__(self, c: float) -> "Adapter":
        value = python_value(c)
        return self.scale(value) if isinstance(value, int | float) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> "Adapter":
        return self.scale(-1)

    def __add__(self, other: "Adapter") -> "Adapter":
        """The exact sum of the updates: see `total`."""
        return total([self, other], [1, 1]) if isinstance(other, Adapter) else NotImplemented

    def __sub__(self, other: "Adapter") -> "Adapter":
        """The exact difference of the updates: see `total`."""
        return total([self, other], [1, -1]) if isinstance(other, Adapter) else NotImplemented


def check_adapter(value: object, what: str = "adapter") -> None:
    """`ArgumentError` unless `value` is an adapter."""
    if not isinstance(value, Adapter):
        raise wrong(what, ADAPTER, value)


def total(adapters: list[Adapter], weights: list[float]) -> Adapter:
    """Σ weight·adapter, exactly, by rank concatenation; a layer that only some adapt is that part of the sum.

    Tensors and rows trained in full are values, not changes: one that several adapters hold must be the same in all.
    Settings (dropout, biases …) and metadata are the first adapter's, metadata where all agree.
    Raises `AlgebraError`, naming layer or tensor, for what cannot be added.
    """
    layers = {}
    for name, terms in sums.terms_by_layer([adapter.layers for adapter in adapters], weights):
        with sums.in_layer(name):
            layers[name] = algebra.added(terms)
    return united(adapters, layers, *agreed(adapters))


def agreed(adapters: list[Adapter]) -> tuple[dict[str, Tensor], dict[str, TokenRows]]:
    """The tensors and rows that any of `adapters` holds; `AlgebraError`, by name, where two hold different ones."""
    tensors = sums.agreed([adapter.tensors for adapter in adapters], same_bits)
    return tensors, sums.agreed([adapter.rows for adapter in adapters], TokenRows.__eq__)


def united(
    adapters: list[Adapter], layers: Mapping[str, LoRAUpdate], tensors: Mapping[str, Tensor], rows: Mapping[str, TokenRows]
) -> Adapter:
    """An adapter of what was made of `adapters`: the first one's settings, all of their `modules_to_save`, and the
    metadata in which they agree."""
    settings = united_settings([adapter.settings for adapter in adapters], full=bool(tensors))
    return Adapter(settings, layers, tensors, sums.shared([adapter.metadata for adapter in adapters]), rows)
