"""What training a model costs by each method, counted on the model without its weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..surgery.bound import Bound
from ..train.measure import count_parameters
from ..train.memory import Memory, memory
from . import paper_models
from .nlg import text_generation
from .nlg.language_models import DTYPES
from .nlu import text_classification
from .options import IDLE, TrainOptions
from .task import Method

COUNTED: tuple[Method, ...] = ("lora", "last-layers", "full")


@dataclass(frozen=True)
class Cost:
    """Of one method: its options, the layers with LoRA, parameters as `count_parameters` has them, and bytes."""

    options: TrainOptions
    bound: Bound
    parameters: Mapping[str, int]
    memory: Memory


def costs(
    model: str,
    labels: list[str] | None,
    options_for: Callable[[bool], Mapping[str, Any]],
    *,
    dtype: str = "fp32",
    optimizer: str = "adamw",
    trust_remote_code: bool = False,
) -> dict[Method, Cost]:
    """What each method costs on the model `model`.

    labels: as in `paper_models.build`. options_for: whether the model generates text, to the options of the runs, LoRA's
    included. dtype: of its weights, as `--dtype` calls it. optimizer: one of `memory.OPTIMIZERS`. trust_remote_code: whether
    to run the Python code that comes with the model. Raises `RunError` where there is no such model, and `ConfigError` or
    `TargetError` for options that cannot work.
    """
    found = {}
    for method in COUNTED:
        shape = paper_models.build(model, labels, trust_remote_code, dtype=DTYPES[dtype])
        values = {name: value for name, value in options_for(shape.is_causal).items() if name not in IDLE[method]}
        options = TrainOptions.of({**values, "method": method})
        bound = _prepare(shape, options) or Bound()
        found[method] = Cost(options, bound, count_parameters(shape.model), memory(shape.model, optimizer))
    return found


def _prepare(shape: paper_models.Shape, options: TrainOptions) -> Bound | None:
    if shape.is_causal:
        return text_generation.prepare(shape.model, options)
    return text_classification.prepare(shape, options)
