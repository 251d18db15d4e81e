"""The GLUE tasks as data: where each keeps its texts and labels, and how it is scored (Wang et al. 2018, 1804.07461)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ...errors import DataError
from .readers import read_file, read_hub

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "nyu-mll/glue"
_MOST_MALFORMED = 1e-3


@dataclass(frozen=True)
class GlueTask:
    """One task: the folder of its files, and their columns (no pair where there is one text).

    metric: by which it is scored. labels: the names of the classes, in order; None for regression. written: what the files call
    them, where it differs. parts: the development and test sets, where there are several. header: the columns of files that do
    not name them. index: the column that numbers the rows of a test file. malformed: whether the published files are known to
    hold lines with too few fields, which are passed over. hub: columns of text and pair on the hub, where they differ.
    """

    folder: str
    text: str
    pair: str | None
    label: str
    metric: str
    labels: tuple[str, ...] | None
    written: tuple[str, ...] | None = None
    parts: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    index: str = "index"
    malformed: bool = False
    hub: tuple[str, str] | None = None

    @property
    def classes(self) -> Mapping[str, str] | None:
        """What the files call each class, by its name; None for numbers."""
        return dict(zip(self.labels, self.written or self.labels, strict=True)) if self.labels else None


_ENTAILS = ("entailment", "not_entailment")
_EQUIVALENT, _DUPLICATE = ("not_equivalent", "equivalent"), ("not_duplicate", "duplicate")
_NLI = ("entailment", "neutral", "contradiction")
_BINARY = ("0", "1")
_COLA = ("source", "label", "mark", "sentence")
_PAIR, _PREMISE = ("sentence1", "sentence2"), ("premise", "hypothesis")

TASKS: Mapping[str, GlueTask] = MappingProxyType(
    {
        "cola": GlueTask("CoLA", "sentence", None, "label", "matthews", ("unacceptable", "acceptable"), _BINARY, header=_COLA),
        "sst2": GlueTask("SST-2", "sentence", None, "label", "accuracy", ("negative", "positive"), _BINARY),
        "mrpc": GlueTask("MRPC", "#1 String", "#2 String", "Quality", "f1", _EQUIVALENT, _BINARY, hub=_PAIR),
        "stsb": GlueTask("STS-B", *_PAIR, "score", "pearson", None),
        "qqp": GlueTask("QQP", "question1", "question2", "is_duplicate", "f1", _DUPLICATE, _BINARY, index="id", malformed=True),
        "mnli": GlueTask("MNLI", *_PAIR, "gold_label", "accuracy", _NLI, parts=("matched", "mismatched"), hub=_PREMISE),
        "qnli": GlueTask("QNLI", "question", "sentence", "label", "accuracy", _ENTAILS),
        "rte": GlueTask("RTE", *_PAIR, "label", "accuracy", _ENTAILS),
        "wnli": GlueTask("WNLI", *_PAIR, "label", "accuracy", _ENTAILS[::-1], _BINARY),
    }
)
DIAGNOSTIC = GlueTask("diagnostic", *_PAIR, "label", "matthews", _NLI, hub=_PREMISE)


def read_glue(name: str, split: str, data_dir: str | Path | None = None) -> "Dataset":
    """A labelled split, "train" or "dev" (of MNLI also "dev_matched", the same, and "dev_mismatched"), from the original files
    below `data_dir`, or from the hub. Raises `DataError` for an unknown task or split, or data that cannot be had."""
    task = _task(name)
    file = _file_of(name, split, ("train", "dev"))
    if data_dir is not None:
        return read_glue_file(name, Path(data_dir) / task.folder / f"{file}.tsv")
    return _read_hub(task, name, file.replace("dev", "validation"), "label", file)


def read_glue_file(name: str, path: str | Path) -> "Dataset":
    """The rows of a task's file in the form of the original distribution, its labels by their names; `DataError` for others."""
    task = _task(name)
    most = _MOST_MALFORMED if task.malformed else 0.0
    data = read_file(path, task.text, task.label, task.pair, header=task.header, most_malformed=most)
    if task.classes is None:
        return data
    names = {written: name for name, written in task.classes.items()}
    labels = data["label"][:]
    if unknown := sorted(set(labels) - names.keys()):
        raise DataError(f"{path} has the label {unknown[0]!r:.60}; expected one of {', '.join(names)}.")
    return data.remove_columns("label").add_column("label", [names[label] for label in labels])


def read_glue_inputs(name: str, split: str = "test", data_dir: str | Path | None = None) -> "Dataset":
    """The texts of a test set, which GLUE publishes without labels but with numbers, the column `id`: "test" (of MNLI
    "test_matched", the same, and "test_mismatched"; also "diagnostic", which GLUE calls AX). Errors as `read_glue`."""
    task = _task(name)
    if name == "mnli" and split == "diagnostic":
        task, file, config, hub_split = DIAGNOSTIC, split, "ax", "test"
    else:
        file = hub_split = _file_of(name, split, ("test",))
        config = name
    if data_dir is None:
        data = _read_hub(task, config, hub_split, "idx", file)
    else:
        data = read_file(Path(data_dir) / task.folder / f"{file}.tsv", task.text, task.index, task.pair)
    return data.rename_column("label", "id")


def _read_hub(task: GlueTask, config: str, split: str, label: str, file: str) -> "Dataset":
    text, pair = task.hub or (task.text, task.pair)
    remedy = f"get a network, or give --data-dir, a folder that holds GLUE's own {task.folder}/{file}.tsv"
    return read_hub(HUB, config, split, text, label, pair, remedy)


def _file_of(name: str, split: str, known: Sequence[str]) -> str:
    """The name of the split's file, without its ending; the hub's is the same but for "validation"."""
    parts = TASKS[name].parts
    names = {base: f"{base}_{parts[0]}" if parts and base != "train" else base for base in known}
    names |= {f"{base}_{part}": f"{base}_{part}" for base in known if base != "train" for part in parts}
    if split not in names:
        raise DataError(f"{name} has no split {split!r} of this kind; it has {', '.join(names)}.")
    return names[split]


def _task(name: str) -> GlueTask:
    if name not in TASKS:
        raise DataError(f"task {name!r} is none of GLUE's: {', '.join(TASKS)}.")
    return TASKS[name]
