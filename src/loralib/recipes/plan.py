"""All that a run needs, found good before anything is written: what each kind of task prepares, and `run` carries out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from .options import TrainOptions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase


class Source(Protocol):
    """Rows of data, and what messages call them."""

    @property
    def source(self) -> str:
        """Where they come from."""
        ...

    def __len__(self) -> int: ...


class Sources(NamedTuple):
    """What a run trains on, what it is evaluated on after every epoch, and what it is scored on once, at the end."""

    train: Source
    evaluation: Source
    test: Source | None


@dataclass(frozen=True)
class Plan:
    """The model, ready to be trained, with its data and the means to judge it.

    labels: the names of the classes; None where there are none. datasets: the rows of `data` as `collator` takes them.
    judge: from what the model computed on a data set to `metrics`. task_type: what PEFT calls the task. trainer: further
    arguments of transformers' Trainer. parameters: how many there are.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    labels: list[str] | None
    data: Sources
    datasets: Sequence[list[dict[str, Any]]]
    collator: "Callable[[Any], Mapping[str, Tensor]]"
    judge: "Callable[[EvalPrediction], dict[str, float]]"
    metrics: Sequence[str]
    task_type: str
    parameters: Mapping[str, int]
    trainer: Mapping[str, Any] = field(default_factory=dict)


class Implementation(Protocol):
    """The module that carries out a kind of task."""

    def read_rows(self, options: TrainOptions) -> Sequence[Source | None]:
        """The rows that a run trains on, is evaluated on and, where there are some, is scored on at the end."""
        ...

    def plan(self, options: TrainOptions, folder: Path) -> Plan:
        """Read the data, load the model and prepare both. Raises `DataError`, `RunError`, `ConfigError` or `TargetError`."""
        ...


def implementation(options: TrainOptions) -> Implementation:
    """The module that carries out the task of a run; it is imported here, with torch and transformers."""
    return cast(Implementation, import_module(f".{options.task_kind.module}", __package__))
