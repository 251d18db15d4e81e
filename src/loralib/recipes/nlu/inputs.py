"""From options to rows, and from rows to what a model takes: tokens, and positions of classes or numbers."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from .. import records, sources
from ..options import TrainOptions
from ..records import listed, source
from . import glue, readers

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LARGEST = 1e15  # label: the squares of a batch of errors still have a sum in float32


def read_data(options: TrainOptions) -> "list[Dataset]":
    """The rows to train on, to evaluate on and, where there are some, to score at the end, sampled, with labels as a model
    learns them. The classes are those of all training data, whatever part is used. Raises `DataError` for what cannot serve."""

    if options.data:
        readers.check_columns(options.text_column, options.label_column, options.text_pair_column)

    def read_own(option: str, name: str, split: str | None) -> "Dataset":
        columns = (options.text_column, options.label_column, options.text_pair_column)
        if records.is_local_file(name):
            return readers.read_file(name, *columns)
        if split is None:
            instead = option.replace("data", "split")
            raise DataError(f"{option} {name!r} must be a {records.KINDS}; for a split of a hub data set use {instead}.")
        if Path(name).exists():
            raise DataError(f"{option} {name!r} is on this disk and is not a {records.KINDS}; convert it to one.")
        return readers.read_hub(name, options.data_config, split, *columns)

    data = sources.read(options, glue.read_glue, read_own)
    names = None
    if options.kind == "classification":
        names = glue.TASKS[options.task].labels if options.task else label_names(data[0])
    return [learnable(part, names) for part in sources.share_out(options, data)]


def encode(data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[dict[str, Any]]:
    """The rows as the model takes them: token ids and a label each."""
    inputs = tokenizer(*texts(data), truncation=True, max_length=max_length)
    return [{**{key: inputs[key][i] for key in inputs}, "label": label} for i, label in enumerate(data["label"][:])]


def texts(data: "Dataset") -> tuple[list[str], list[str] | None]:
    """The texts, and their second ones where they come in pairs."""
    return data["text"][:], data["pair"][:] if "pair" in data.column_names else None


def label_names(data: "Dataset") -> list[str]:
    """The classes in order: whole numbers by value, then text; `DataError` when they are fewer than two, or too many."""
    names, rows = list(dict.fromkeys(data["label"][:])), len(data)
    if len(names) < 2:
        raise DataError(f"{source(data)}: all {rows} rows have the label {listed(names)}; classification needs two classes.")
    if len(names) > max(50, rows / 2):
        problem = f"{source(data)} has {len(names)} labels in {rows} rows: the label column looks like text or a number"
        raise DataError(f"{problem}: use --label-column or --problem regression.")
    numbers = [_as_float(name) for name in names]
    for name, number in zip(names, numbers, strict=True):
        if None not in numbers and number is not None and not math.isfinite(number):
            raise DataError(f"{source(data)} has the label {listed([name])} among numbers; give each of its rows a class.")
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
    value = _as_float(label)
    if value is None or not abs(value) <= LARGEST:
        where = f"{source(data)}: the label {listed([label])} of the text {listed([data[row]['text']])}"
        if value is None or not math.isfinite(value):
            raise DataError(f"{where} is not a number, and regression needs numbers.")
        raise DataError(f"{where} is too large: squared errors overflow float32; scale the labels.")
    return value


def _as_float(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def learnable(data: "Dataset", labels: Sequence[str] | None) -> "Dataset":
    """The data with labels as a model learns them: a `ClassLabel` of the classes `labels`, or numbers where there are none."""
    from datasets import ClassLabel, Dataset, DatasetInfo, Features, Value

    kinds = Features(data.features | {"label": ClassLabel(names=list(labels)) if labels else Value("float64")})
    columns = data.to_dict() | {"label": targets(data, labels)}
    return Dataset.from_dict(columns, info=DatasetInfo(description=source(data), features=kinds))
