"""Which checkpoints of transformers' Trainer are whole. Imports neither torch nor transformers."""

import json
import os
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

PREFIX, STATE = "checkpoint", "trainer_state.json"  # transformers' PREFIX_CHECKPOINT_DIR and TRAINER_STATE_NAME


def last_whole_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint in `folder` that was written to its end and not damaged since, or None."""
    steps = {path: re.fullmatch(rf"{PREFIX}-(\d+)", path.name) for path in Path(folder).glob("*")}
    found = sorted((int(step[1]), path) for path, step in steps.items() if step)
    return next((path for _, path in reversed(found) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    """Trainer writes its state last; archives of torch and safetensors tell by themselves whether their end is there."""
    try:
        json.loads((checkpoint / STATE).read_text())
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return all(zipfile.is_zipfile(path) for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")])
