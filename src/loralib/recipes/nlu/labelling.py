"""From labels as they stand in the data to what a model learns: positions of classes, or numbers."""

import math
import re
from collections.abc import Sequence

from ...errors import DataError
from ..records import listed
from .readers import TextData


def label_names(data: TextData) -> list[str]:
    """The classes of the whole data of which `data` may be a part, in order: whole numbers by value, then text.

    Raises `DataError` when there are fewer than two, or so many that they cannot be classes.

    >>> label_names(TextData("x", ["a", "b", "c"], ["10", "9", "10"]))
    ['9', '10']
    """
    names, rows = list(data.label_counts), sum(data.label_counts.values())
    if len(names) < 2:
        raise DataError(f"{data.source}: all {rows} rows have the label {listed(names)}; classification needs two classes.")
    if len(names) > max(50, rows / 2):
        raise DataError(
            f"{data.source} has {len(names)} labels in {rows} rows: the label column looks like text or a number: "
            "use --label-column or --problem regression."
        )
    return sorted(names, key=_class_order)


def _class_order(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if re.fullmatch(r"-?[0-9]{1,18}", name) else (1, 0, name)


def class_ids(data: TextData, names: Sequence[str]) -> list[int]:
    """The label of each row as a position in `names`; `DataError` for a label that is none of them."""
    ids = {name: i for i, name in enumerate(names)}
    for label in data.labels:
        if label not in ids:
            raise DataError(f"{data.source} has the label {listed([label])}, which is none of {listed(names)}.")
    return [ids[label] for label in data.labels]


def scores(data: TextData) -> list[float]:
    """The label of each row as a number; `DataError` naming the first that is none."""
    values = []
    for text, label in zip(data.texts, data.labels, strict=True):
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{data.source}: the label {listed([label])} of the text {listed([text])} is no number, "
                "and regression needs numbers."
            )
        values.append(value)
    return values


def targets(data: TextData, labels: Sequence[str] | None) -> list[float] | list[int]:
    """What a model learns for each row: the position of its class in `labels`, or its number where there are no classes."""
    return scores(data) if labels is None else class_ids(data, labels)
