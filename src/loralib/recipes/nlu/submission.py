"""Predictions for GLUE's test sets, in the files that its server takes: a line of names, then a row number and a prediction.

index   prediction
0       entailment
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ...errors import DataError
from ...storage.atomic import write_atomically
from .glue import TASKS

HEADER = "index\tprediction"


# The files of a submission, each with the task and the split that it answers.
FILES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "CoLA": ("cola", "test"),
        "SST-2": ("sst2", "test"),
        "MRPC": ("mrpc", "test"),
        "STS-B": ("stsb", "test"),
        "QQP": ("qqp", "test"),
        "MNLI-m": ("mnli", "test_matched"),
        "MNLI-mm": ("mnli", "test_mismatched"),
        "QNLI": ("qnli", "test"),
        "RTE": ("rte", "test"),
        "WNLI": ("wnli", "test"),
        "AX": ("mnli", "diagnostic"),
    }
)


def splits_of(task: str) -> dict[str, str]:
    """The files that answer a task, each with its split."""
    return {name: split for name, (answered, split) in FILES.items() if answered == task}


def write(folder: Path, name: str, predictions: Sequence[str | float]) -> Path:
    """Write FOLDER/<name>.tsv, what was predicted for each row of the test set, whole or not at all; returns its path.

    Numbers (STS-B) are brought into [0, 5]. Raises `DataError` for a prediction that the task does not know.
    """
    written = [_written(FILES[name][0], value) for value in predictions]
    lines = [HEADER, *(f"{i}\t{value}" for i, value in enumerate(written))]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.tsv"
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def _written(task: str, value: str | float) -> str:
    labels = TASKS[task].classes
    if labels is None:
        if isinstance(value, str) or not math.isfinite(value):
            raise DataError(f"{value!r} is not a number, which predictions of {task} are.")
        return f"{min(5.0, max(0.0, value)):.3f}"
    if value not in labels:
        raise DataError(f"{value!r} is none of the classes of {task}: {', '.join(labels)}.")
    return labels[str(value)]
