"""Predictions for GLUE's test sets, in the files that its server takes: a line of names, then a row number and a prediction.

index   prediction
0       entailment
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ...errors import DataError
from ...storage.atomic import write_atomically
from .glue import TASKS

HEADER = "index\tprediction"


@dataclass(frozen=True)
class File:
    """One file of a submission: the task and the split that it answers, and how many rows that has."""

    task: str
    split: str
    rows: int


FILES: Mapping[str, File] = MappingProxyType(
    {
        "CoLA": File("cola", "test", 1_063),
        "SST-2": File("sst2", "test", 1_821),
        "MRPC": File("mrpc", "test", 1_725),
        "STS-B": File("stsb", "test", 1_379),
        "QQP": File("qqp", "test", 390_965),
        "MNLI-m": File("mnli", "test_matched", 9_796),
        "MNLI-mm": File("mnli", "test_mismatched", 9_847),
        "QNLI": File("qnli", "test", 5_463),
        "RTE": File("rte", "test", 3_000),
        "WNLI": File("wnli", "test", 146),
        "AX": File("mnli", "diagnostic", 1_104),
    }
)


def files_of(task: str) -> dict[str, File]:
    """The files that answer a task, by name."""
    return {name: file for name, file in FILES.items() if file.task == task}


def write(folder: Path, name: str, predictions: Sequence[str | float]) -> Path:
    """Write FOLDER/<name>.tsv, what was predicted for each row of the test set, whole or not at all; returns its path.

    Numbers (STS-B) are brought into [0, 5]. Raises `DataError` for a prediction that the task does not know.
    """
    written = [_written(FILES[name], value) for value in predictions]
    lines = [HEADER, *(f"{i}\t{value}" for i, value in enumerate(written))]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.tsv"
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def _written(file: File, value: str | float) -> str:
    labels = TASKS[file.task].classes
    if labels is None:
        if isinstance(value, str) or not math.isfinite(value):
            raise DataError(f"{value!r} is no number, which predictions of {file.task} are.")
        return f"{min(5.0, max(0.0, value)):.3f}"
    if value not in labels:
        raise DataError(f"{value!r} is none of the classes of {file.task}: {', '.join(labels)}.")
    return labels[str(value)]
