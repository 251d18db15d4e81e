"""A finished run, opened: its model again, ready to be used."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import formats
from ..errors import ConfigError, RunError
from ..surgery.attach import attach
from ..surgery.merge import disabled, merge
from ..train import prefix
from . import model_loader, run_folder
from .options import TrainOptions
from .task import ADAPTERS, Problem


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of one of the `kinds` of task, with its model in evaluation mode."""

    kinds: ClassVar[tuple[Problem, ...]] = ()

    folder: Path
    options: TrainOptions
    labels: list[str] | None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @staticmethod
    def load(
        name: str, options: TrainOptions, labels: list[str] | None, trust_remote_code: bool
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model `name` of a run with these options, and its tokenizer, with a head for `labels` where there is one."""
        raise NotImplementedError

    @classmethod
    def options_of(cls, folder: Path) -> tuple[TrainOptions, list[str] | None]:
        """The options of the run in `folder` and its labels. Raises `RunError` when it is of another kind, or not there."""
        options, labels = run_folder.read_options(folder)
        if options.kind not in cls.kinds:
            raise RunError(f"the run in {folder} {options.task_kind.usage}.")
        return options, labels

    @classmethod
    def open(cls, folder: Path, trust_remote_code: bool = False) -> Self:
        """The model that the run in `folder` trained, LoRA merged, on the GPU where there is one.

        trust_remote_code: whether to run the Python code that comes with the model, where it needs some, whatever the run says.
        """
        options, labels = cls.options_of(folder)
        saved = run_folder.trained_part(folder, options)
        adapted = options.method in ADAPTERS
        model, tokenizer = cls.load(str(options.model) if adapted else str(saved), options, labels, trust_remote_code)
        if adapted:
            tokenizer = model_loader.saved_tokenizer(saved) or tokenizer
        if options.method == "prefix":
            model = prefix.open_prefix(model, saved)
        elif adapted:
            attach(model, formats.load(saved))
            merge(model)
        device: Any = torch.accelerator.current_accelerator() or torch.device("cpu")
        return cls(folder, options, labels, model.train(False).to(device), tokenizer)

    def base(self) -> AbstractContextManager[Any]:
        """Context manager: the model as it was before training. `ConfigError` for a run that trained the model itself."""
        self.check_base()
        model: Any = self.model
        without: AbstractContextManager[Any] = model.disable_adapter() if self.options.prefix else disabled(model)
        return without

    def check_base(self) -> None:
        """`ConfigError` for a run that trained the model itself, so that there is no model as it was before."""
        if self.options.method not in ADAPTERS:
            raise ConfigError(f"the run in {self.folder} trained the model itself, so it has no base to generate with.")
