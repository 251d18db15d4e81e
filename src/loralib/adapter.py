"""An adapter as a value: what training changed, apart from any model.

    Adapter = configuration + {layer name: LoRAUpdate} + {tensor name: tensor trained in full beside them}

Names are those of the model that was adapted. An adapter knows no modules: `extract` makes one from a model, `attach` puts
one on a model, and the formats read and write it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from .config import LoRAConfig
from .updates import LoRAUpdate


@dataclass(frozen=True, eq=False)
class Adapter:
    """A configuration, the update of each adapted layer, and the tensors that were trained in full beside them.

    layers: by layer name. tensors: by tensor name, such as `classifier.weight`. metadata: what a format says beside them;
    PEFT's knows `base_model_name_or_path`, `task_type` and `revision`.

    >>> layers = {"proj": LoRAUpdate(torch.ones(2, 3), torch.ones(5, 2), lora_alpha=4)}
    >>> adapter = Adapter(LoRAConfig(r=2, lora_alpha=4, target_modules=["proj"]), layers)
    >>> adapter
    Adapter(1 layer of rank 2, 16 parameters, 0 tensors beside)
    >>> adapter.delta("proj").shape
    torch.Size([5, 3])
    """

    config: LoRAConfig
    layers: Mapping[str, LoRAUpdate]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("layers", "tensors", "metadata"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __repr__(self) -> str:
        ranks = sorted({update.r for update in self.layers.values()})
        of_rank = f" of rank {', '.join(map(str, ranks))}" if ranks else ""
        layers = f"{len(self.layers)} layer{'' if len(self.layers) == 1 else 's'}{of_rank}"
        beside = f"{len(self.tensors)} tensor{'' if len(self.tensors) == 1 else 's'} beside"
        return f"Adapter({layers}, {self.num_parameters():,} parameters, {beside})"

    def __reduce__(self) -> tuple[object, ...]:
        return Adapter, (self.config, dict(self.layers), dict(self.tensors), dict(self.metadata))

    def num_parameters(self) -> int:
        """How many numbers the factors hold (tensors beside not counted, as the paper counts)."""
        return sum(update.A.numel() + update.B.numel() for update in self.layers.values())

    def delta(self, name: str) -> Tensor:
        """ΔW of the layer `name`, shape (out, in) for a linear one, in at least float32; `KeyError` when it is not adapted."""
        return self.layers[name].delta()

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Adapter":
        """The same adapter with its tensors in another dtype or on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        layers = {name: replace(update, A=move(update.A), B=move(update.B)) for name, update in self.layers.items()}
        return Adapter(self.config, layers, {name: move(t) for name, t in self.tensors.items()}, self.metadata)

    def with_metadata(self, metadata: Mapping[str, str]) -> "Adapter":
        """The same adapter with `metadata` added to what it has.

        >>> Adapter(LoRAConfig(), {}).with_metadata({"task_type": "SEQ_CLS"}).metadata["task_type"]
        'SEQ_CLS'
        """
        return replace(self, metadata={**self.metadata, **metadata})
