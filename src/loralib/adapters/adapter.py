"""An adapter as a value: what training changed, apart from any model.

    Adapter = configuration + {layer name: LoRAUpdate} + {tensor name: tensor trained in full beside them}
              + {tensor name: rows of it that were trained}

Names are those of the model that was adapted. An adapter knows no modules: `extract` makes one from a model, `attach` puts
one on a model, and the formats read and write it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from operator import itemgetter
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from .. import patterns
from ..config import LoRAConfig
from ..errors import AlgebraError, ConfigError, TargetError
from ..tensors import as_bytes, same_bits
from . import algebra, summary
from .token_rows import TokenRows
from .updates import FusedUpdate, LoRAUpdate

T = TypeVar("T")

Rename = Mapping[str, str] | Callable[[str], str]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A configuration, the update of each adapted layer, and the tensors that were trained in full beside them.

    layers: by layer name. tensors: by tensor name, such as `classifier.weight`. metadata: what a format says beside them;
    PEFT's knows `base_model_name_or_path`, `task_type` and `revision`. rows: rows of tensors, by the tensor's name.
    source: where it was read from, in words; no part of the value.

    Adapters are values: `a == b` when everything but `source` is the same to the last bit, and no operation changes one.
    Tensors are shared between an adapter and those made from it; do not write into them.

    >>> layers = {"proj": LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
    >>> adapter = Adapter(LoRAConfig(r=2, lora_alpha=4, target_modules=["proj"]), layers)
    >>> adapter
    Adapter(1 layer of rank 2, 16 parameters, 0 tensors beside)
    >>> adapter.delta("proj").shape
    torch.Size([5, 3])
    >>> total = 0.5 * adapter + 0.5 * adapter
    >>> total.layers["proj"].r, torch.equal(total.delta("proj"), adapter.delta("proj"))
    (4, True)
    """

    config: LoRAConfig
    layers: Mapping[str, LoRAUpdate]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, TokenRows] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("layers", "tensors", "metadata", "rows"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __repr__(self) -> str:
        ranks = sorted({update.r for update in self.layers.values()})
        few = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > summary.FEW else ", ".join(map(str, ranks))
        of_rank = f" of rank {few}" if ranks else ""
        layers = f"{len(self.layers)} layer{'' if len(self.layers) == 1 else 's'}{of_rank}"
        beside = f"{len(self.tensors)} tensor{'' if len(self.tensors) == 1 else 's'} beside"
        rows = sum(len(rows.indices) for rows in self.rows.values())
        of_tokens = f", {rows} row{'' if rows == 1 else 's'} of tokens" if rows else ""
        return f"Adapter({layers}, {self.num_parameters():,} parameters, {beside}{of_tokens})"

    def __reduce__(self) -> tuple[object, ...]:
        parts = (dict(self.layers), dict(self.tensors), dict(self.metadata), dict(self.rows))
        return Adapter, (self.config, *parts, self.source)

    # --- equality ---------------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Adapter):
            return NotImplemented
        alike = (self.config, self.metadata, self.layers, self.rows) == (other.config, other.metadata, other.layers, other.rows)
        mine, its = self.tensors, other.tensors
        return alike and mine.keys() == its.keys() and all(same_bits(tensor, its[name]) for name, tensor in mine.items())

    def __hash__(self) -> int:
        return hash((self.config, frozenset(self.layers.items()), frozenset(self.tensors)))

    def digest(self) -> str:
        """The SHA-256 of the content, in hexadecimal digits: equal adapters have equal ones, in every process and on every
        device. `source` is left out.

        >>> Adapter(LoRAConfig(), {}).digest() == Adapter(LoRAConfig(), {}, source="a file").digest()
        True
        """
        digest = hashlib.sha256()

        def add(*values: object) -> None:
            for value in values:
                said = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                digest.update(f"{len(said)}:{said}".encode())
                if isinstance(value, Tensor):
                    digest.update(bytes(as_bytes(value).numpy()))

        config = self.config.to_dict() | {"lora_alpha": float(self.config.lora_alpha)}
        add(json.dumps(config, sort_keys=True), sorted(self.metadata.items()))
        for name, update in sorted(self.layers.items()):
            add(name, type(update).__name__, float(update.lora_alpha))
            add(*(getattr(update, f.name) for f in fields(update) if f.name != "lora_alpha"))
        for name, tensor in sorted(self.tensors.items()):
            add(name, tensor)
        for name, rows in sorted(self.rows.items()):
            add(name, rows.indices, rows.values)
        return digest.hexdigest()

    # --- what it says -----------------------------------------------------------------------------------------------

    def num_parameters(self) -> int:
        """How many numbers the factors hold (tensors beside not counted, as the paper counts), DoRA's magnitudes included."""
        return sum(tensor.numel() for update in self.layers.values() for tensor in update.tensors().values())

    def delta(self, name: str) -> Tensor:
        """ΔW of the layer `name`, shape (out, in) for a linear one, in at least float32; `KeyError` when it is not adapted,
        `AlgebraError` for a DoRA update, whose effect depends on the weight."""
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
        return "\n".join(f"{what:<12} {said}" for what, said in self.facts().items())

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

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        layers = {
            name: update.with_tensors({key: move(tensor) for key, tensor in update.tensors().items()})
            for name, update in self.layers.items()
        }
        rows = {name: replace(rows, values=move(rows.values)) for name, rows in self.rows.items()}
        return replace(self, layers=layers, tensors={name: move(t) for name, t in self.tensors.items()}, rows=rows)

    def with_metadata(self, metadata: Mapping[str, str]) -> "Adapter":
        """The same adapter with `metadata` added to what it has.

        >>> Adapter(LoRAConfig(), {}).with_metadata({"task_type": "SEQ_CLS"}).metadata["task_type"]
        'SEQ_CLS'
        """
        return replace(self, metadata={**self.metadata, **metadata})

    def rename(self, names: Rename) -> "Adapter":
        """The same adapter for a model that has other names. names: {module: new name}, which renames all that lies in the
        module (the longest fitting one counts, and "" stands for the model itself), or a function of one name.

        Raises `TargetError` when an entry fits nothing, or two things would have one name.

        >>> layers = {"unet.mid.to_q": LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
        >>> adapter = Adapter(LoRAConfig(r=2), layers)
        >>> list(adapter.rename({"unet": ""}).layers), list(adapter.rename({"": "pipe"}).layers)
        (['mid.to_q'], ['pipe.unet.mid.to_q'])
        """
        new = names if callable(names) else patterns.renaming(names, [*self.layers, *self.tensors, *self.rows])
        layers, tensors, rows = _renamed(new, self.layers), _renamed(new, self.tensors), _renamed(new, self.rows)
        modules = tuple(dict.fromkeys(filter(None, map(new, self.config.modules_to_save))))
        config = replace(described(self.config, layers), modules_to_save=modules)
        return replace(self, config=config, layers=layers, tensors=tensors, rows=rows)

    def part(self, module: str) -> "Adapter":
        """What the adapter changes in `module`, by the names within it; `TargetError` when that is nothing.

        >>> layers = {f"{part}.to_q": LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4) for part in ("unet", "text")}
        >>> list(Adapter(LoRAConfig(r=2), layers).part("unet").layers)
        ['to_q']
        """

        def inside(values: Mapping[str, T]) -> dict[str, T]:
            return {name: value for name, value in values.items() if patterns.within(name, [module])}

        kept = replace(self, layers=inside(self.layers), tensors=inside(self.tensors), rows=inside(self.rows))
        return kept.rename({module: ""})

    # --- arithmetic -------------------------------------------------------------------------------------------------

    def truncate(self, r: int | None = None, energy: float | None = None) -> "Adapter":
        """The closest adapter whose layers have rank `r` at most, or the smallest rank that keeps the share `energy` of
        ‖ΔW‖² of each (with both, the smaller of the two). Layers of no higher rank stay as they are.

        Computed by an SVD of B·A that never forms it. Raises `ConfigError` when neither is given or `r` is no rank,
        `AlgebraError` for an `energy` that is no share, or factors that are not finite.

        >>> layers = {"proj": LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
        >>> Adapter(LoRAConfig(r=2), layers).truncate(energy=0.99)
        Adapter(1 layer of rank 1, 8 parameters, 0 tensors beside)
        """
        if r is None and energy is None:
            raise ConfigError("truncate() needs a rank r, or the share of the squared norm to keep, such as energy=0.99.")
        return self._with_each(lambda update: algebra.truncated(update, r, energy))

    def scale(self, c: float) -> "Adapter":
        """Every ΔW times `c`, of any sign; c = 1 gives the adapter itself. What was trained in full beside them (a head, say)
        holds values, not changes, and stays as it is. `AlgebraError` for DoRA, unless c = 1."""
        return self._with_each(lambda update: algebra.scaled(update, c))

    def _with_each(self, operation: Callable[[LoRAUpdate], LoRAUpdate]) -> "Adapter":
        layers = {}
        for name, update in self.layers.items():
            with told_of(name):
                layers[name] = operation(update)
        return self.with_layers(layers)

    def with_layers(self, layers: Mapping[str, LoRAUpdate]) -> "Adapter":
        """The same adapter with other updates, which its configuration then describes."""
        if all(layers.get(name) is update for name, update in self.layers.items()) and len(layers) == len(self.layers):
            return self
        return replace(self, layers=layers, config=described(self.config, layers), source="")

    def __mul__(self, c: float) -> "Adapter":
        return self.scale(c) if isinstance(c, int | float) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> "Adapter":
        return self.scale(-1)

    def __add__(self, other: "Adapter") -> "Adapter":
        """The exact sum of the updates: see `total`."""
        return total([self, other], [1, 1]) if isinstance(other, Adapter) else NotImplemented

    def __sub__(self, other: "Adapter") -> "Adapter":
        """The exact difference of the updates: see `total`."""
        return total([self, other], [1, -1]) if isinstance(other, Adapter) else NotImplemented


# --- sums -----------------------------------------------------------------------------------------------------------


def total(adapters: list[Adapter], weights: list[float]) -> Adapter:
    """Σ weight·adapter, exactly, by rank concatenation; a layer that only some adapt is that part of the sum.

    Tensors and rows trained in full are values, not changes: one that several adapters hold must be the same in all.
    Configuration (dropout, biases …) and metadata are the first adapter's, metadata where all agree.
    Raises `AlgebraError`, naming layer or tensor, for what cannot be added.
    """
    layers = {}
    for name, terms in terms_by_layer(adapters, weights):
        with told_of(name):
            layers[name] = algebra.added(terms)
    return united(adapters, layers, *agreed(adapters))


def terms_by_layer(adapters: list[Adapter], weights: list[float]) -> Iterator[tuple[str, list[algebra.Weighted]]]:
    """Every layer that any of `adapters` adapts, with the updates that it has and their weights."""
    for name in dict.fromkeys(name for adapter in adapters for name in adapter.layers):
        yield name, [(a.layers[name], weight) for a, weight in zip(adapters, weights, strict=True) if name in a.layers]


def agreed(adapters: list[Adapter]) -> tuple[dict[str, Tensor], dict[str, TokenRows]]:
    """The tensors and rows that any of `adapters` holds; `AlgebraError`, by name, where two hold another one."""
    return (
        _agreed([adapter.tensors for adapter in adapters], same_bits),
        _agreed([adapter.rows for adapter in adapters], TokenRows.__eq__),
    )


def united(
    adapters: list[Adapter], layers: Mapping[str, LoRAUpdate], tensors: Mapping[str, Tensor], rows: Mapping[str, TokenRows]
) -> Adapter:
    """An adapter of what was made of `adapters`: the first one's configuration, all of their `modules_to_save`, and the
    metadata in which they agree."""
    first = adapters[0]
    shared = {k: v for k, v in first.metadata.items() if all(adapter.metadata.get(k) == v for adapter in adapters)}
    modules = dict.fromkeys(name for adapter in adapters for name in adapter.config.modules_to_save)
    bias = max((adapter.config.bias for adapter in adapters), key=["none", "lora_only", "all"].index)
    kept = {"modules_to_save": tuple(modules), "bias": bias} if tensors else {"modules_to_save": (), "bias": "none"}
    config = replace(described(first.config, layers), **kept)
    return Adapter(config, layers, tensors, shared, rows)


def _agreed(held: list[Mapping[str, T]], same: Callable[[T, T], bool]) -> dict[str, T]:
    found: dict[str, T] = {}
    for values in held:
        for name, value in values.items():
            if name in found and not same(found[name], value):
                raise AlgebraError(
                    f"{name!r} was trained in full in several adapters and differs; say with combine(..., tensors=...) what "
                    "is to become of such tensors."
                )
            found.setdefault(name, value)
    return found


@contextmanager
def told_of(name: str) -> Iterator[None]:
    """Let an `AlgebraError` inside the block begin with `name`, that of the layer."""
    try:
        yield
    except AlgebraError as error:
        raise AlgebraError(f"{name}: {error}") from None


# --- what a configuration says of its layers ------------------------------------------------------------------------


def described(config: LoRAConfig, layers: Mapping[str, LoRAUpdate]) -> LoRAConfig:
    """`config` with everything that it says of ranks, scalings, slices and targets taken from `layers`, by their full names.

    >>> layers = {name: LoRAUpdate(torch.ones(r, 3), torch.ones(5, r), 4) for name, r in (("a", 2), ("b", 2), ("c", 1))}
    >>> dict(described(LoRAConfig(), layers).rank_pattern)
    {'^c': 1}
    """
    merged = {name: update for name, update in layers.items() if isinstance(update, FusedUpdate)}
    ranks, alphas = ([getattr(update, key) for update in layers.values()] for key in ("r", "lora_alpha"))
    r, lora_alpha = (max(Counter(sorted(values)).items(), key=itemgetter(1))[0] if values else 8 for values in (ranks, alphas))
    return replace(
        config,
        r=r,
        lora_alpha=lora_alpha,
        target_modules=tuple(layers),
        exclude_modules=(),
        rank_pattern={patterns.exactly(name): u.r for name, u in layers.items() if u.r != r},
        alpha_pattern={patterns.exactly(name): u.lora_alpha for name, u in layers.items() if u.lora_alpha != lora_alpha},
        use_rslora=any(update.use_rslora for update in layers.values()),
        enable_lora={patterns.exactly(name): u.enable_lora for name, u in merged.items()},
        slice_widths={patterns.exactly(name): u.widths for name, u in merged.items() if len(set(u.widths)) > 1},
    )


def _renamed(new: Callable[[str], str], values: Mapping[str, T]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, value in values.items():
        if (renamed := new(name)) in found or not renamed:
            problem = "more than one thing would be called so" if renamed else "a name is needed"
            raise TargetError(f"rename: {name!r} cannot become {renamed!r}: {problem}.")
        found[renamed] = value
    return found
