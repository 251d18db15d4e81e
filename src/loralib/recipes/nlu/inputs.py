"""From options to rows, and from rows to what a model takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from .. import records, sources
from ..options import TrainOptions
from . import glue, labelling, readers

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def read_data(options: TrainOptions) -> "list[Dataset]":
    """The rows to train on, to evaluate on and, where there are some, to score at the end, sampled, with labels as a model
    learns them. The classes are those of all training data, whatever part is used. Raises `DataError` for what cannot serve."""

    def read_own(option: str, name: str, split: str | None) -> "Dataset":
        columns = (options.text_column, options.label_column, options.text_pair_column)
        if records.is_local_file(name):
            return readers.read_file(name, *columns)
        if split is None:
            instead = option.replace("data", "split")
            raise DataError(f"{option} {name!r} must be a {records.KINDS}; for a split of a hub data set use {instead}.")
        if Path(name).exists():
            raise DataError(f"{option} {name!r} is on this disk and is no {records.KINDS}; convert it to one.")
        return readers.read_hub(name, options.data_config, split, *columns)

    data = sources.read(options, glue.read_glue, read_own)
    names = None
    if options.kind == "classification":
        names = glue.TASKS[options.task].labels if options.task else labelling.label_names(data[0])
    return [labelling.learnable(part, names) for part in sources.share_out(options, data)]


def encode(data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[dict[str, Any]]:
    """The rows as the model takes them: token ids and a label each."""
    inputs = tokenizer(*texts(data), truncation=True, max_length=max_length)
    return [{**{key: inputs[key][i] for key in inputs}, "label": label} for i, label in enumerate(data["label"][:])]


def texts(data: "Dataset") -> tuple[list[str], list[str] | None]:
    """The texts, and their second ones where they come in pairs."""
    return data["text"][:], data["pair"][:] if "pair" in data.column_names else None
