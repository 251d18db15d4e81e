"""From options to rows, and from rows to what a model takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import DataError
from .. import records
from ..options import HELD_OUT, TrainOptions
from . import labelling, readers
from .glue import TASKS, read_glue
from .readers import TextData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Rows(NamedTuple):
    """What a run trains on, what it is evaluated on after every epoch, and what it is scored on once, at the end."""

    train: TextData
    evaluation: TextData
    test: TextData | None


def read_data(options: TrainOptions) -> Rows:
    """The rows of a run, sampled as asked. Raises `DataError` when they cannot be had."""
    test = None
    if options.task:
        train, held_out = (read_glue(options.task, split, options.data_dir) for split in ("train", "dev"))
        if options.eval_fraction:
            test, (train, held_out) = held_out if options.tests else None, train.split(options.eval_fraction, options.seed)
    else:
        train, held_out = _read_own_data(options)
        test = _read_test(options) if options.tests else None
    return Rows(
        train.sample(options.max_train_rows, options.seed),
        held_out.sample(options.max_eval_rows, options.seed),
        test and test.sample(options.max_test_rows, options.seed),
    )


def _read_own_data(options: TrainOptions) -> tuple[TextData, TextData]:
    assert options.data is not None
    columns = (options.text_column, options.label_column, options.text_pair_column)
    if options.eval_data:
        if not records.is_local_file(options.eval_data):
            raise DataError(
                f"--eval-data {options.eval_data!r} must be a {records.KINDS}; for a split of a hub data set use --eval-split."
            )
        held_out = readers.read_file(options.eval_data, *columns)
        return _read_one(options, options.train_split, columns), held_out
    if options.eval_split:
        if records.is_local_file(options.data):
            raise DataError(f"--eval-split names a split of a hub data set; {options.data} is a local file: give --eval-data.")
        return _read_one(options, options.train_split, columns), _read_one(options, options.eval_split, columns)
    return _read_one(options, options.train_split, columns).split(options.eval_fraction or HELD_OUT, options.seed)


def _read_test(options: TrainOptions) -> TextData:
    columns = (options.text_column, options.label_column, options.text_pair_column)
    if options.test_data:
        return readers.read_file(options.test_data, *columns)
    assert options.data is not None
    assert options.test_split is not None
    if records.is_local_file(options.data):
        raise DataError(f"--test-split names a split of a hub data set; {options.data} is a local file: give --test-data.")
    return _read_one(options, options.test_split, columns)


def _read_one(options: TrainOptions, split: str, columns: tuple[str, str, str | None]) -> TextData:
    assert options.data is not None
    if records.is_local_file(options.data):
        return readers.read_file(options.data, *columns)
    if Path(options.data).exists():
        raise DataError(f"--data {options.data!r} is on this disk and is no {records.KINDS}; convert it to one.")
    return readers.read_hub(options.data, options.data_config, split, *columns)


def classes(options: TrainOptions, data: TextData) -> list[str] | None:
    """The names of the classes in all the training data, whatever part `data` is of it; None for regression.

    Raises `DataError` when the labels do not serve.
    """
    if options.task:
        labels = TASKS[options.task].labels
        return list(labels) if labels else None
    return labelling.label_names(data) if options.kind == "classification" else None


def encode(
    data: TextData, labels: list[str] | None, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[dict[str, Any]]:
    """The rows as the model takes them: token ids and a label each."""
    targets = labelling.targets(data, labels)
    inputs = tokenizer(data.texts, data.pairs, truncation=True, max_length=max_length)
    return [{**{key: inputs[key][i] for key in inputs}, "label": target} for i, target in enumerate(targets)]
