"""The data-to-text tasks of the LoRA paper as data: the files and hub data sets that each comes in, and how it is scored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...errors import DataError
from ..records import listed, load_table
from . import dart, e2e, webnlg
from .examples import GenerationData

TABLES = "refs/convert/parquet"  # the hub's own conversion of data sets that come with a loading script, which no longer runs


@dataclass(frozen=True)
class GenerationTask:
    """One task.

    title: its name, for messages. folders: where its files may lie below a data folder, besides in it. files: their names by
    split, the preferred first; each may also be a `.gz`. origin: where to get them. read: reads one. metrics: by which it is
    scored. hub, config: its name on the hub, whose branch `TABLES` is read. columns: what it has there. development: what the
    hub calls the split "dev". read_table: reads a table of the hub.
    """

    title: str
    folders: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]
    origin: str
    read: Callable[[Path], GenerationData]
    metrics: tuple[str, ...]
    hub: str
    config: str | None
    columns: tuple[str, ...]
    development: str
    read_table: Callable[[str, Any], GenerationData]


def _e2e_table(source: str, table: Any) -> GenerationData:
    return e2e.from_columns(source, table["meaning_representation"], table["human_reference"])


TASKS: Mapping[str, GenerationTask] = MappingProxyType(
    {
        "e2e": GenerationTask(
            "E2E NLG",
            ("e2e", "e2e-dataset"),
            MappingProxyType(
                {
                    "train": ("lora_nlg_train.txt", "train.txt", "trainset.csv"),
                    "dev": ("lora_nlg_valid.txt", "valid.txt", "devset.csv"),
                    "test": ("lora_nlg_test.txt", "test.txt", "testset_w_refs.csv"),
                }
            ),
            "github.com/tuetschek/e2e-dataset",
            e2e.read_e2e,
            ("bleu", "nist", "meteor", "rouge_l", "cider"),
            "tuetschek/e2e_nlg",
            None,
            ("meaning_representation", "human_reference"),
            "validation",
            _e2e_table,
        ),
        "webnlg": GenerationTask(
            "WebNLG 2017",
            ("webnlg", "webnlg_challenge_2017"),
            MappingProxyType(
                {
                    "train": ("train.json", "train.xml", "train"),
                    "dev": ("dev.json", "dev.xml", "dev"),
                    "test": ("test.json", "test.xml", "testdata_with_lex.xml", "test/testdata_with_lex.xml"),
                }
            ),
            "gitlab.com/shimorina/webnlg-dataset, folder webnlg_challenge_2017",
            webnlg.read_webnlg,
            ("bleu", "meteor", "ter"),
            "webnlg-challenge/web_nlg",
            "webnlg_challenge_2017",
            ("modified_triple_sets", "lex", "category"),
            "dev",
            webnlg.from_table,
        ),
        "dart": GenerationTask(
            "DART 1.1.1",
            ("dart", "dart/data/v1.1.1"),
            MappingProxyType(
                {
                    split: (f"dart-v1.1.1-full-{split}.json", f"dart-v1.1.1-full-{split}.xml")
                    for split in ("train", "dev", "test")
                }
            ),
            "github.com/Yale-LILY/dart, folder data/v1.1.1",
            dart.read_dart,
            ("bleu", "meteor", "ter"),
            "Yale-LILY/dart",
            None,
            ("tripleset", "annotations"),
            "validation",
            dart.from_table,
        ),
    }
)


def read_split(name: str, split: str, data_dir: str | Path | None = None) -> GenerationData:
    """A split of a task, "train", "dev" or "test", from the files in or below `data_dir`, or from the hub when it is None.

    Raises `DataError` for an unknown task or split, or data that cannot be had or read.
    """
    task = _task(name)
    if split not in task.files:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(task.files)}.")
    return _from_hub(task, split) if data_dir is None else task.read(_found(task, split, Path(data_dir)))


def _task(name: str) -> GenerationTask:
    if name not in TASKS:
        raise DataError(f"task {name!r} is none of the data-to-text tasks: {', '.join(TASKS)}.")
    return TASKS[name]


def _found(task: GenerationTask, split: str, data_dir: Path) -> Path:
    """The first of the split's files that is there."""
    if not data_dir.is_dir():
        raise DataError(f"{data_dir} {'is a file' if data_dir.exists() else 'does not exist'}; give --data-dir, a folder.")
    for place in [data_dir / folder for folder in task.folders] + [data_dir]:
        for file in task.files[split]:
            for path in (place / file, place / f"{file}.gz"):
                if _serves(path):
                    return path
    raise DataError(f"{data_dir} has no {split} set of {task.title}; --data-dir must be {_wanted(task, split)}.")


def _serves(path: Path) -> bool:
    # Names without an ending stand for folders; many folders are called "train", but only WebNLG's hold XML.
    return path.is_file() if "." in path.name else next(path.rglob("*.xml"), None) is not None


def _wanted(task: GenerationTask, split: str) -> str:
    names = " or ".join(file if "." in file else f"a folder {file} of .xml files" for file in task.files[split])
    return f"a folder that holds, itself or in a folder {task.folders[0]}, {names} (from {task.origin})"


def _from_hub(task: GenerationTask, split: str) -> GenerationData:
    hub_split = task.development if split == "dev" else split
    where = f"hub data set {task.hub!r}" + (f" ({task.config})" if task.config else "") + f", split {hub_split!r}"
    try:
        table = load_table(where, task.hub, task.config, hub_split, TABLES)
    except DataError as error:
        said = str(error).rstrip(".").removesuffix("; check the name and the network, or give a local file")
        raise DataError(f"{said}; get a network, or give --data-dir, {_wanted(task, split)}.") from None
    for column in task.columns:
        if column not in table.column_names:
            raise DataError(f"{where} has no column {column!r}; it has {listed(table.column_names)}: give --data-dir instead.")
    return task.read_table(where, table)
