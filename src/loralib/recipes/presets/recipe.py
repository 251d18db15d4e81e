"""One recipe as a value, and knowing for which of the paper's models it is asked."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...architectures import short_name
from ...errors import ConfigError

PresetName = Literal["paper", "scripts"]
_YIELDS = {  # what the user says on the left takes the place of the preset's on the right
    "warmup_ratio": "warmup_steps",
    "warmup_steps": "warmup_ratio",
    "gradient_accumulation_steps": "device_batch_size",
    "bf16": "fp16",
    "target_modules": "layers",
}


@dataclass(frozen=True)
class Preset:
    """One task's recipe.

    values: by the names of `TrainOptions`. seeds: how many runs are reported together. average: how, by their median or their
    mean. start_from: the task whose factors it starts from. reported: what the paper reports and its spread, in the metric that
    chooses the epoch and in hundredths; None where it reports other metrics.
    """

    values: Mapping[str, Any]
    seeds: int
    average: Literal["median", "mean"]
    start_from: str | None = None
    reported: tuple[float, float] | None = None

    def updated(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's values, with the user's own in their places."""
        yielding = {_YIELDS[name] for name, value in given.items() if name in _YIELDS and value is not None}
        return {name: value for name, value in self.values.items() if name not in yielding} | dict(given)


def family_of(model: str, shapes: Mapping[tuple[str, int, int], str]) -> str | None:
    """Which of the paper's models, named by (model type, width, layers) in `shapes`, `model` is: by its name or its config."""
    name = short_name(model)
    if name in shapes.values():
        return name
    config = Path(model) / "config.json"
    if not config.is_file():
        return None
    try:
        stored = json.loads(config.read_text(encoding="utf-8"))
        width, layers = (next(stored[key] for key in keys if key in stored) for keys in _SIZES)
        return shapes.get((stored["model_type"], width, layers))
    except (ValueError, KeyError, TypeError, StopIteration, RuntimeError):
        return None


_SIZES = (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer"))


def no_family(preset: str, model: str | None, known: Collection[str]) -> ConfigError:
    """What to say of a model that a recipe does not know."""
    *names, last = known
    return ConfigError(
        f"--preset {preset} knows {', '.join(names)} and {last}, and {model} is none of them; "
        "leave --preset out and give the options themselves."
    )
