"""A Hugging Face Trainer whose checkpoints hold the adapter, never the base model.

DDP, mixed precision, logging, evaluation and resuming are Trainer's own; only what a checkpoint's *model* is changes here.
"""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .. import formats, surgery
from ..adapter import Adapter


class AdapterTrainer(Trainer):
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
        return surgery.extract(self.model).with_metadata(self.metadata)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            formats.save(self.adapter(), output_dir or self.args.output_dir or ".")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        surgery.attach(model or self.model, formats.load(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        surgery.attach(self.model, formats.load(best))


def last_whole_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint in `folder` that was written to its end, or None.

    Trainer writes its state last, so a checkpoint whose state can be read is whole.
    """
    found = sorted(Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return next((path for path in reversed(found) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    return True
