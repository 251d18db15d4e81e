"""From labels as they stand in the data to what a model learns: positions of classes, or numbers."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import DataError
from ..records import listed, source

if TYPE_CHECKING:
    from datasets import Dataset


def label_names(data: "Dataset") -> list[str]:
    """The classes in order: whole numbers by value, then text; `DataError` when they are fewer than two, or too many."""
    names, rows = list(dict.fromkeys(data["label"][:])), len(data)
    if len(names) < 2:
        raise DataError(f"{source(data)}: all {rows} rows have the label {listed(names)}; classification needs two classes.")
    if len(names) > max(50, rows / 2):
        problem = f"{source(data)} has {len(names)} labels in {rows} rows: the label column looks like text or a number"
        raise DataError(f"{problem}: use --label-column or --problem regression.")
    return sorted(names, key=_class_order)


def _class_order(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if re.fullmatch(r"-?[0-9]{1,18}", name) else (1, 0, name)


def targets(data: "Dataset", labels: Sequence[str] | None) -> list[float] | list[int]:
    """What a model learns for each row: the position of its class in `labels`, or its number where there are no classes.

    Raises `DataError` for a label that is neither.
    """
    given = data["label"][:]
    if labels is None:
        return [_number(data, label, i) for i, label in enumerate(given)]
    ids = {name: i for i, name in enumerate(labels)}
    for label in given:
        if label not in ids:
            raise DataError(f"{source(data)} has the label {listed([label])}, which is none of {listed(labels)}.")
    return [ids[label] for label in given]


def _number(data: "Dataset", label: str, row: int) -> float:
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        where = f"{source(data)}: the label {listed([label])} of the text {listed([data[row]['text']])}"
        raise DataError(f"{where} is no number, and regression needs numbers.")
    return value


def learnable(data: "Dataset", labels: Sequence[str] | None) -> "Dataset":
    """The data with labels as a model learns them: a `ClassLabel` of the classes `labels`, or numbers where there are none."""
    from datasets import ClassLabel, Value

    feature = ClassLabel(names=list(labels)) if labels else Value("float64")
    return data.remove_columns("label").add_column("label", targets(data, labels), feature=feature)
