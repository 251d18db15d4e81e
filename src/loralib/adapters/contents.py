"""What an adapter holds and what can be read from it: its parts, equality, digest, counts and a summary."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from torch import Tensor

from .. import patterns
from ..arguments import check_name
from ..config import LoRAConfig
from ..errors import TargetError
from ..tensors import same_bits
from . import summary
from .config_of import ConfigField, described
from .digest import digest
from .parts import check_parts
from .token_rows import TokenRows
from .updates import LoRAUpdate


@dataclass(frozen=True, eq=False)
class Contents:
    """The parts of an `Adapter`, by name. Immutable: the mappings are read-only views of copies."""

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
        return type(self), (self.settings, *parts, self.source)

    @cached_property
    def _described(self) -> LoRAConfig:
        return described(self.settings, self.layers)

    # --- equality ---------------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Contents):
            return NotImplemented
        mine, its = ((a.settings, a.metadata, a.layers, a.rows, a.tensors.keys()) for a in (self, other))
        return mine == its and all(same_bits(tensor, other.tensors[name]) for name, tensor in self.tensors.items())

    def __hash__(self) -> int:
        return hash((self.settings, frozenset(self.layers.items()), frozenset(self.tensors)))

    def digest(self) -> str:
        """The SHA-256 of the content: equal adapters have equal digests, in every process and on every device.

        Returns:
            Hexadecimal digits. `source` is left out.
        """
        return digest(self.settings, self.layers, self.tensors, self.rows, self.metadata)

    # --- what it says -----------------------------------------------------------------------------------------------

    def num_parameters(self) -> int:
        """How many numbers the factors hold, DoRA's magnitudes included.

        Returns:
            The count. Extra tensors are not part of it, as in the paper's tables.
        """
        return summary.num_parameters(self.layers)

    def delta(self, name: str) -> Tensor:
        """ΔW of one layer.

        Args:
            name: The layer's name.

        Returns:
            ΔW in at least float32, (out, in) for a linear layer, (out, in / groups, *kernel) for a convolution.

        Raises:
            TargetError: When the layer is not adapted.
            ArgumentError: When `name` is not a text.
            AlgebraError: For a DoRA update, whose effect depends on the weight.
        """
        check_name(name, "name")
        if name not in self.layers:
            raise TargetError(f"{name!r} is not adapted. Nearest names: {patterns.nearest(name, self.layers)}.")
        return self.layers[name].delta()

    def summary(self) -> str:
        """The adapter in a few lines: see `facts`.

        Returns:
            A line for each fact.

        Example:
            >>> layers = {"0.proj": lora.LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
            >>> print(lora.Adapter(lora.LoRAConfig(r=2), layers, metadata={"task_type": "SEQ_CLS"}).summary())
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
        """What `summary` shows: source, base model, ranks, alphas, targets, counts, dtypes, bytes and metadata.

        Returns:
            The facts by name; what does not apply is left out.
        """
        return summary.describe(self.layers, self.tensors, self.rows, self.metadata, self.source)

    def all_tensors(self) -> Iterable[Tensor]:
        """Every tensor that the adapter holds.

        Yields:
            The tensors of updates, those trained in full, and rows.
        """
        for update in self.layers.values():
            yield from update.tensors().values()
        yield from self.tensors.values()
        yield from (rows.values for rows in self.rows.values())
