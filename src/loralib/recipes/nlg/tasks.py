"""The data-to-text tasks of the LoRA paper as data: the files and hub data sets that each comes in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ...errors import DataError
from ..records import load_table
from . import e2e, triples

if TYPE_CHECKING:
    from datasets import Dataset

TABLES = "refs/convert/parquet"  # the hub's own conversion of data sets that come with a loading script, which no longer runs


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """One task.

    title: its name, for messages. folders: where its files may lie below a data folder, as well as in it. train, dev, test:
    the names of its files, the preferred first; each may also be a `.gz`. origin: where to get them. hub, config: its name on
    the hub, whose branch `TABLES` is read. development: what the hub calls the split "dev".
    """

    title: str
    folders: tuple[str, ...]
    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]
    origin: str
    read: "Callable[[Path], Dataset]"
    hub: str
    config: str | None = None
    development: str = "validation"
    read_table: "Callable[[Dataset], Dataset]"


SPLITS = ("train", "dev", "test")
TASKS: Mapping[str, GenerationTask] = MappingProxyType(
    {
        "e2e": GenerationTask(
            title="E2E NLG",
            folders=("e2e", "e2e-dataset"),
            train=("lora_nlg_train.txt", "train.txt", "trainset.csv"),
            dev=("lora_nlg_valid.txt", "valid.txt", "devset.csv"),
            test=("lora_nlg_test.txt", "test.txt", "testset_w_refs.csv"),
            origin="github.com/tuetschek/e2e-dataset",
            read=e2e.read_e2e,
            hub="tuetschek/e2e_nlg",
            read_table=e2e.from_table,
        ),
        "webnlg": GenerationTask(
            title="WebNLG 2017",
            folders=("webnlg", "webnlg_challenge_2017"),
            train=("train.json", "train.xml", "train"),
            dev=("dev.json", "dev.xml", "dev"),
            test=("test.json", "test.xml", "testdata_with_lex.xml", "test/testdata_with_lex.xml"),
            origin="gitlab.com/shimorina/webnlg-dataset, folder webnlg_challenge_2017",
            read=triples.read_webnlg,
            hub="webnlg-challenge/web_nlg",
            config="webnlg_challenge_2017",
            development="dev",
            read_table=triples.webnlg_from_table,
        ),
        "dart": GenerationTask(
            title="DART 1.1.1",
            folders=("dart", "dart/data/v1.1.1"),
            train=("dart-v1.1.1-full-train.json", "dart-v1.1.1-full-train.xml"),
            dev=("dart-v1.1.1-full-dev.json", "dart-v1.1.1-full-dev.xml"),
            test=("dart-v1.1.1-full-test.json", "dart-v1.1.1-full-test.xml"),
            origin="github.com/Yale-LILY/dart, folder data/v1.1.1",
            read=triples.read_dart,
            hub="Yale-LILY/dart",
            read_table=triples.dart_from_table,
        ),
    }
)


def read_split(name: str, split: str, data_dir: str | Path | None = None) -> "Dataset":
    """A split, "train", "dev" or "test", from the files in or below `data_dir`, or from the hub; `DataError` without it."""
    if name not in TASKS:
        raise DataError(f"task {name!r} is none of the data-to-text tasks: {', '.join(TASKS)}.")
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(SPLITS)}.")
    task, files = TASKS[name], getattr(TASKS[name], split)
    names = " or ".join(file if "." in file else f"a folder {file} of .xml files" for file in files)
    wanted = f"a folder that holds, itself or in a folder {task.folders[0]}, {names} (from {task.origin})"
    if data_dir is None:
        hub_split, remedy = task.development if split == "dev" else split, f"get a network, or give --data-dir, {wanted}"
        return task.read_table(load_table(task.hub, task.config, hub_split, remedy, TABLES))
    if not Path(data_dir).is_dir():
        raise DataError(
            f"{data_dir} {'is a file' if Path(data_dir).exists() else 'does not exist'}; give --data-dir, a folder."
        )
    for folder in (*task.folders, "."):
        for file in files:
            for path in (Path(data_dir, folder, file), Path(data_dir, folder, f"{file}.gz")):
                if _serves(path):
                    return task.read(path)
    raise DataError(f"{data_dir} has no {split} set of {task.title}; --data-dir must be {wanted}.")


def _serves(path: Path) -> bool:
    # Names without an ending stand for folders; many folders are called "train", but only WebNLG's hold XML.
    return path.is_file() if "." in path.name else next(path.rglob("*.xml"), None) is not None
