"""A Hugging Face Trainer whose checkpoints hold the adapter, never the base model.

DDP, mixed precision, logging, evaluation and resuming are Trainer's own; only what a checkpoint's *model* is changes here.
"""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from .. import formats
from ..adapters.adapter import Adapter
from ..surgery.attach import attach
from ..surgery.extract import extract
from .sampling import GroupingTrainer

# what safetensors and torch.save say, neither of them as an OSError
_SIGNS_OF_FAILED_WRITING = ("I/O error", "PytorchStreamWriter", "inline_container.cc", "iostream error")


class AdapterTrainer(GroupingTrainer):
    """Trainer for a model that was injected: each checkpoint holds the adapter (with the tensors trained beside the
    factors), the optimizer, the scheduler and the random states.

    metadata: what `adapter_config.json` shall say beside the configuration, such as `base_model_name_or_path`.
    """

    model: nn.Module

    def __init__(self, *args: Any, metadata: dict[str, str] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.metadata = metadata or {}

    def adapter(self) -> Adapter:
        """What the model has learned so far."""
        return extract(self.model).with_metadata(self.metadata)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            formats.save(self.adapter(), output_dir or self.args.output_dir or ".")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        attach(model or self.model, formats.load(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        attach(self.model, formats.load(best))


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
    said = str(error)
    return any(sign in said for sign in _SIGNS_OF_FAILED_WRITING) and "PytorchStreamReader" not in said
