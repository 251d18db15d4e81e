"""An adapter as a value: the updates of its layers and its extra tensors, without a model.

    Adapter = {layer name: LoRAUpdate} + {tensor name: tensor trained in full}
              + {tensor name: rows of it that were trained} + the settings that layers do not say

Names are those of the model that was adapted. An adapter knows no modules: `extract` makes one from a model, `attach` puts
one on a model, and the formats read and write it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import patterns
from ..arguments import ADAPTER, check_device, check_dtype, check_mapping, check_name, wrong
from ..config import python_value
from ..errors import ConfigError
from ..tensors import same_bits
from . import algebra, sums
from .config_of import united_settings
from .contents import Contents
from .parts import renamed
from .token_rows import TokenRows
from .updates import LoRAUpdate

T = TypeVar("T")

Rename = Mapping[str, str] | Callable[[str], str]


@dataclass(frozen=True, eq=False, repr=False)
class Adapter(Contents):
    """LoRA weights as a value: the update of each adapted layer, the tensors trained in full, and a configuration.

    `a == b` when everything but `source` is the same to the last bit, and no operation changes an adapter. Tensors are shared
    between an adapter and those made from it; do not write into them. `a + b`, `a - b` and `0.5 * a` are exact.

    Args:
        config: Injected, it gives a model the same layers. What it says of ranks, scalings and targets is computed from
            `layers`; of a configuration that is given only dropout, biases, `modules_to_save` and `fan_in_fan_out` are kept, as
            `settings`.
        layers: The updates by layer name.
        tensors: Tensors trained in full by name, such as `classifier.weight`.
        metadata: What else a format says; PEFT's knows `base_model_name_or_path`, `task_type` and `revision`.
        rows: Rows of tensors, by the tensor's name.
        source: Where it was read from; not part of the value.

    Raises:
        ArgumentError: When a part is of another kind.

    Example:
        >>> layers = {"proj": lora.LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
        >>> adapter = lora.Adapter(lora.LoRAConfig(r=2, lora_alpha=4, target_modules=["proj"]), layers)
        >>> adapter
        Adapter(1 layer, r=2, 16 parameters, 0 extra tensors)
        >>> adapter.delta("proj").shape
        torch.Size([5, 3])
        >>> total = 0.5 * adapter + 0.5 * adapter
        >>> total.layers["proj"].r, torch.equal(total.delta("proj"), adapter.delta("proj"))
        (4, True)
    """

    def _with(self, **changes: Any) -> "Adapter":
        """The same adapter with other fields; spares describing layers that are replaced."""
        return replace(self, **{"config": self.settings, **changes})

    # --- other tensors, other names ---------------------------------------------------------------------------------

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Adapter":
        """Move or cast the adapter.

        Args:
            dtype: Of floating-point tensors. Default: as they are.
            device: Where the tensors go. Default: where they are.

        Returns:
            The same adapter with other tensors.

        Raises:
            ArgumentError: When `dtype` or `device` is something else.
        """

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
        """Add metadata.

        Args:
            metadata: The entries to add or replace.

        Returns:
            The same adapter with these entries.

        Example:
            >>> lora.Adapter(lora.LoRAConfig()).with_metadata({"task_type": "SEQ_CLS"}).metadata["task_type"]
            'SEQ_CLS'
        """
        return self._with(metadata={**self.metadata, **metadata})

    def rename(self, names: Rename) -> "Adapter":
        """Rename layers and tensors, for a model that has other names.

        Args:
            names: {module: new name}, which renames all that lies in the module (the longest fitting one counts, and "" stands
                for the model itself), or a function of one name.

        Returns:
            The same adapter by other names.

        Raises:
            TargetError: When an entry fits nothing, or two things would have one name.
            ArgumentError: When `names` is neither a dictionary of names nor a function.

        Example:
            >>> layers = {"unet.mid.to_q": lora.LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
            >>> adapter = lora.Adapter(lora.LoRAConfig(r=2), layers)
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
        """What the adapter changes in one module.

        Args:
            module: The module's name.

        Returns:
            An adapter for the module, by the names within it.

        Raises:
            TargetError: When nothing of it lies in the module.
            ArgumentError: When `module` is not a text.

        Example:
            >>> update = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)
            >>> list(lora.Adapter(lora.LoRAConfig(r=2), {"unet.to_q": update, "text.to_q": update}).part("unet").layers)
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
        """Reduce the rank of each layer: the closest adapter of lower rank (Eckart and Young 1936).

        Computed by an SVD of B·A that never forms it. Layers of no higher rank stay as they are.

        Args:
            r: The largest rank.
            energy: The fraction of ‖ΔW‖²_F of each layer to keep, by the smallest rank that does; with `r`, the smaller of the
                two.

        Returns:
            The truncated adapter.

        Raises:
            ConfigError: When neither is given, or `r` is not a rank.
            AlgebraError: When `energy` is not a fraction, or factors are not finite.

        Example:
            >>> layers = {"proj": lora.LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
            >>> lora.Adapter(lora.LoRAConfig(r=2), layers).truncate(energy=0.99)
            Adapter(1 layer, r=1, 8 parameters, 0 extra tensors)
        """
        if r is None and energy is None:
            raise ConfigError("truncate() needs a rank r, or the share of the squared norm to keep, such as energy=0.99.")
        return self._with_each(lambda update: algebra.truncated(update, r, energy))

    def scale(self, c: float) -> "Adapter":
        """Multiply every ΔW by `c`. Tensors trained in full (a head, say) hold values, not changes, and stay as they are.

        Args:
            c: Any finite number. 1 gives the adapter itself.

        Returns:
            The scaled adapter.

        Raises:
            AlgebraError: For DoRA, unless c = 1.
        """
        return self._with_each(lambda update: algebra.scaled(update, c))

    def _with_each(self, operation: Callable[[LoRAUpdate], LoRAUpdate]) -> "Adapter":
        layers = {}
        for name, update in self.layers.items():
            with sums.in_layer(name):
                layers[name] = operation(update)
        return self.with_layers(layers)

    def with_layers(self, layers: Mapping[str, LoRAUpdate]) -> "Adapter":
        """Replace the updates.

        Args:
            layers: The new updates by layer name.

        Returns:
            The same adapter with other updates.
        """
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
