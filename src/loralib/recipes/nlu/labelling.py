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
    """The classes of the data in order: whole numbers by value, then text.

    Raises `DataError` when there are fewer than two, or so many that they cannot be classes.
    """
    names, rows = list(dict.fromkeys(data["label"][:])), len(data)
    if len(names) < 2:
        raise DataError(f"{source(data)}: all {rows} rows have the label {listed(names)}; classification needs two classes.")
    if len(names) > max(50, rows / 2):
        raise DataError(
            f"{source(data)} has {len(names)} labels in {rows} rows: the label column looks like text or a number: "
            "use --label-column or --problem regression."
        )
    return sorted(names, key=_class_order)


def _class_order(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if re.fullmatch(r"-?[0-9]{1,18}", name) else (1, 0, name)


def class_ids(data: "Dataset", names: Sequence[str]) -> list[int]:
    """The label of each row as a position in `names`; `DataError` for a label that is none of them."""
    ids, labels = {name: i for i, name in enumerate(names)}, data["label"][:]
    for label in labels:
        if label not in ids:
            raise DataError(f"{source(data)} has the label {listed([label])}, which is none of {listed(names)}.")
    return [ids[label] for label in labels]


def scores(data: "Dataset") -> list[float]:
    """The label of each row as a number; `DataError` naming the first that is none."""
    values = [_number(label) for label in data["label"][:]]
    for i, value in enumerate(values):
        if not math.isfinite(value):
            label, text = data[i]["label"], data[i]["text"]
            raise DataError(
                f"{source(data)}: the label {listed([label])} of the text {listed([text])} is no number, "
                "and regression needs numbers."
            )
    return values


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan


def targets(data: "Dataset", labels: Sequence[str] | None) -> list[float] | list[int]:
    """What a model learns for each row: the position of its class in `labels`, or its number where there are no classes."""
    return scores(data) if labels is None else class_ids(data, labels)


def learnable(data: "Dataset", labels: Sequence[str] | None) -> "Dataset":
    """The data with labels as a model learns them: a `ClassLabel` of the classes `labels`, or numbers where there are none."""
    from datasets import ClassLabel, Value

    feature = ClassLabel(names=list(labels)) if labels else Value("float64")
    return data.remove_columns("label").add_column("label", targets(data, labels), feature=feature)
