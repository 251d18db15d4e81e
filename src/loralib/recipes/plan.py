"""All that a run needs, found good before anything is written: what each kind of task prepares, and `run` carries out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..errors import RunError
from ..surgery.bound import Bound
from .options import TrainOptions

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments


@dataclass(frozen=True)
class Plan:
    """The model, ready to be trained, with its data and the means to judge it.

    labels: the names of the classes; None where there are none. data: the rows to train on, those to evaluate on after every
    epoch and, where there are some, those to score once, at the end. datasets: the same as the model takes them. task_type:
    what PEFT calls the task. trainer: further arguments of transformers' Trainer, such as the metrics. bound: the layers with
    LoRA, where there are any. settled: options that the model decides, such as a learning rate of "auto". watch: makes what
    looks on while training runs, and says and writes what it sees. notes: what else the user should know before it starts.
    kind: a Trainer other than the method's. arguments: makes its `TrainingArguments`, where those are of a class of their own.
    count: counts the parameters, where `measure` would not know what is added to the model.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    labels: list[str] | None
    data: "Sequence[Dataset]"
    datasets: Sequence[list[dict[str, Any]]]
    task_type: str
    trainer: Mapping[str, Any]
    bound: Bound | None = None
    settled: Mapping[str, Any] = field(default_factory=dict)
    watch: "Callable[[Console, Path], TrainerCallback] | None" = None
    notes: Sequence[str] = ()
    kind: "type[Trainer] | None" = None
    arguments: "Callable[..., TrainingArguments] | None" = None
    count: Callable[[Any], dict[str, int]] | None = None


class Implementation(Protocol):
    """The module that carries out a kind of task."""

    def read_rows(self, options: TrainOptions) -> "Sequence[Dataset]":
        """The rows of a run, as in `Plan.data`. Raises `DataError` when they cannot be had."""
        ...

    def plan(self, options: TrainOptions, data: "Sequence[Dataset]") -> Plan:
        """Load the model and prepare it for the rows `data`. Raises `DataError`, `RunError`, `ConfigError` or `TargetError`."""
        ...


def implementation(options: TrainOptions) -> Implementation:
    """The module that carries out the task of a run; it is imported here, with torch and transformers.

    Raises `RunError` where a package that it or the method needs is not installed.
    """
    check_packages(options)
    return cast(Implementation, import_module(f".{options.task_kind.module}", __package__))


def check_packages(options: TrainOptions) -> None:
    """`RunError` where an optional package that a run needs is not installed."""
    needed = {f"problem={options.kind}": options.task_kind.package, "method=prefix": "peft" if options.prefix else ""}
    for what, package in needed.items():
        if package and find_spec(package) is None:
            raise RunError(f"{what} needs the package {package}; run: pip install {package}")
