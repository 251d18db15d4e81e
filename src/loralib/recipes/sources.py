"""What a run trains on, is evaluated on and is scored on at the end: the same choices for every kind of task."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from .options import HELD_OUT, TrainOptions
from .records import HUB_REMEDY, is_local_file, load_table, numbered, read_records, sample, source, split

if TYPE_CHECKING:
    from datasets import Dataset

    from .records import Record

    Read = Callable[[str, str, str | None], Dataset]


def read(options: TrainOptions, read_task: "Read", read_own: "Read") -> "list[Dataset | None]":
    """All rows to train on, to evaluate on (None: a part of those to train on) and to score at the end (None: there are none).

    read_task: reads a task's split from a folder or the hub. read_own: reads what an option names.
    """
    if options.task:
        train, evaluation = (read_task(options.task, part, options.data_dir) for part in ("train", "dev"))
        if not options.eval_fraction:
            return [train, evaluation, None]
        return [train, None, evaluation if options.tests else None]
    return read_data(options, read_own)


def read_data(options: TrainOptions, read_own: "Read") -> "list[Dataset | None]":
    """The same of data that options name, without a task."""
    evaluation = _further(options, "eval", read_own)
    train = read_own("--data", options.data or "", options.train_split)
    return [train, evaluation, _further(options, "test", read_own) if options.tests else None]


def read_rows(options: TrainOptions, convert: "Callable[[Sequence[Record], str], Dataset]") -> "list[Dataset]":
    """The rows of files or of a data set on the hub, each with its place for messages, as `convert` makes data of them; rows
    that are equal in the column `prompt` stay together."""

    def read_own(option: str, name: str, split: str | None) -> "Dataset":
        if is_local_file(name):
            return convert(read_records(Path(name)), name)
        table = load_table(name, options.data_config, split or "train", HUB_REMEDY)
        return convert(list(numbered(source(table), table.to_list())), source(table))

    return share_out(options, read_data(options, read_own), by="prompt")


def _further(options: TrainOptions, part: str, read_own: "Read") -> "Dataset | None":
    file, hub_split = getattr(options, f"{part}_data"), getattr(options, f"{part}_split")
    if file:
        return read_own(f"--{part}-data", file, None)
    if hub_split and is_local_file(options.data or ""):
        raise DataError(f"--{part}-split names a split of a hub data set; {options.data} is a local file: give --{part}-data.")
    return read_own(f"--{part}-split", options.data or "", hub_split) if hub_split else None


def share_out(options: TrainOptions, data: "Sequence[Dataset | None]", by: str | None = None) -> "list[Dataset]":
    """Those rows, every part sampled as asked; rows to evaluate on are held out where there are none.

    by: the column whose equal values stay together.
    """
    train, evaluation, test = data
    if evaluation is None:
        train, evaluation = split(train, options.eval_fraction or HELD_OUT, options.seed, by)
    most = (options.max_train_rows, options.max_eval_rows, options.max_test_rows)
    return [sample(part, n, options.seed) for part, n in zip((train, evaluation, test), most, strict=True) if part]
