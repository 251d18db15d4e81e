"""A Hugging Face Trainer whose checkpoints hold the adapter, never the base model.

DDP, mixed precision, logging, evaluation and resuming are Trainer's own; only what a checkpoint's *model* is changes here.
"""

import errno
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.trainer import TRAINING_ARGS_NAME

from .. import formats
from ..adapters.adapter import Adapter
from ..surgery.attach import attach
from ..surgery.extract import extract
from ..surgery.survey import Survey
from .sampling import GroupingTrainer
from .step_mean import StepMeanTrainer

# what safetensors and torch.save say, neither of them as an OSError
_SIGNS_OF_FAILED_WRITING = ("I/O error", "PytorchStreamWriter", "inline_container.cc", "iostream error")


class AdapterTrainer(StepMeanTrainer):
    """A Trainer for a model with LoRA, or a mixin in front of any other Trainer: `class T(AdapterTrainer, SFTTrainer): pass`.

    A checkpoint, and what `save_model` writes, is a PEFT folder with the factors and what `modules_to_save` named, next to the
    optimizer, the scheduler and the random states; resuming and `load_best_model_at_end` read it. (A plain Trainer writes the
    base model with the factors among its tensors, and `from_pretrained` reads the bare base from that.)

    Args:
        *args: Those of the Trainer.
        metadata: What `adapter_config.json` says in addition to the configuration, such as `base_model_name_or_path`.
        **kwargs: Those of the Trainer.

    Raises:
        LayerError: When the model has no LoRA update: inject it before the Trainer is made.

    Example:
        >>> import tempfile, transformers
        >>> from loralib.train import AdapterTrainer
        >>> sizes = dict(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
        >>> model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
        >>> _ = lora.inject(model, lora.LoRAConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = AdapterTrainer(model, transformers.TrainingArguments(folder, report_to="none", use_cpu=True))
        ...     trainer.save_model()
        ...     lora.load(folder)
        Adapter(1 layer, r=2, 16 parameters, 2 extra tensors)
    """

    model: nn.Module

    def __init__(self, *args: Any, metadata: Mapping[str, str] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.metadata = dict(metadata or {})
        Survey(self.model).require_adapted()

    def adapter(self) -> Adapter:
        """What the model has learned so far.

        Returns:
            A copy of the model's adapter, with `metadata`.
        """
        return extract(self.model).with_metadata(self.metadata)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        formats.save(self.adapter(), folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        attach(self.model if model is None else model, formats.load(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        attach(self.model, formats.load(best))


class GroupingAdapterTrainer(AdapterTrainer, GroupingTrainer):
    """`AdapterTrainer` that groups texts by length as `GroupingTrainer` does."""


@contextmanager
def write_errors_named(folder: Path) -> Iterator[None]:
    """A disk that is full, which libraries report in many ways, becomes an `OSError` that names the folder.

    TensorBoard's writer thread hands its failure on to the thread that logs; its own report would be a second one.
    """
    report_of_thread = threading.excepthook
    threading.excepthook = lambda hook: None if _is_full_disk(hook.exc_value) else report_of_thread(hook)
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_full_disk(error) or (isinstance(error, OSError) and error.filename):
            raise
        raise OSError(errno.ENOSPC, f"writing failed, probably for want of disk space ({error})", str(folder)) from error
    finally:
        threading.excepthook = report_of_thread


def _is_full_disk(error: BaseException | None) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    message = str(error)
    return any(sign in message for sign in _SIGNS_OF_FAILED_WRITING) and "PytorchStreamReader" not in message
