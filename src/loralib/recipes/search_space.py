"""What a search for LoRA's hyper-parameters chooses from."""

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..architectures import ROLES
from ..errors import ConfigError


@dataclass(frozen=True)
class Space:
    """What is searched: every combination of these.

    r: ranks. alpha: multiples of the rank that lora_alpha takes. layers: sets of roles, joined by commas. train_head: what of
    the head is trained. learning_rate: peaks. Raises `ConfigError` for a value that no run could take.
    """

    r: tuple[int, ...] = (2, 4, 8, 16, 32)
    alpha: tuple[float, ...] = (1, 2, 4)
    layers: tuple[str, ...] = (
        "value",
        "query,value",
        "query,key,value,output",
        "mlp",
        "query,value,mlp",
        "query,key,value,output,mlp",
    )
    train_head: tuple[str, ...] = ("all", "classifier")
    learning_rate: tuple[float, ...] = (5e-4, 1e-3, 2e-3)

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name):
                raise ConfigError(
                    f"{field.name}: the search needs one value at least; leave the option out for its usual ones."
                )
        for joined in self.layers:
            if unknown := [role for role in joined.split(",") if role.strip() not in ROLES]:
                raise ConfigError(f"layers={joined!r}: {unknown[0]!r} is none of {', '.join(ROLES)}.")

    def draw(self, n: int, seed: int, first: Mapping[str, Any]) -> list[dict[str, Any]]:
        """`first` and up to n - 1 other combinations, drawn without replacement, as values of `TrainOptions`.

        >>> Space(r=(4,), alpha=(2,), layers=("value",), train_head=("all",), learning_rate=(0.1,)).draw(3, 0, {"r": 8})
        [{'r': 8}, {'r': 4, 'lora_alpha': 8.0, 'layers': 'value', 'train_head': 'all', 'learning_rate': 0.1}]
        """
        product = itertools.product(*(getattr(self, field.name) for field in fields(self)))
        grid = [
            {"r": r, "lora_alpha": float(a * r), "layers": layers, "train_head": head, "learning_rate": rate}
            for r, a, layers, head, rate in product
        ]
        others = [values for values in grid if any(first.get(name) != value for name, value in values.items())]
        return [dict(first), *random.Random(seed).sample(others, min(n - 1, len(others)))]
