"""The GLUE tasks as data: where each keeps its texts and labels, and how it is scored (Wang et al. 2018, 1804.07461)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from ..errors import DataError
from .readers import TextData, read_file, read_headless, read_hub

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """One task, in the original distribution and on the hub.

    folder: where its files lie. text, label: their columns. pair: the column of the second text; None where there is one text.
    metric: by which it is scored. labels: the names of the classes, in order; None for regression. written: those names as the
    files write them, where they differ. dev: the name of the development file, without `.tsv`. headless: the positions of text
    and label in files without column names, from 0. hub_text, hub_pair: columns on the hub, where they differ.
    """

    folder: str
    text: str
    pair: str | None
    label: str
    metric: str
    labels: tuple[str, ...] | None
    written: tuple[str, ...] | None = None
    dev: str = "dev"
    headless: tuple[int, int] | None = None
    hub_text: str | None = None
    hub_pair: str | None = None


_ENTAILS = ("entailment", "not_entailment")
_BINARY = ("0", "1")

TASKS: Mapping[str, GlueTask] = MappingProxyType(
    {
        "cola": GlueTask(
            "CoLA", "sentence", None, "label", "matthews", ("unacceptable", "acceptable"), _BINARY, headless=(3, 1)
        ),
        "sst2": GlueTask("SST-2", "sentence", None, "label", "accuracy", ("negative", "positive"), _BINARY),
        "mrpc": GlueTask(
            "MRPC",
            "#1 String",
            "#2 String",
            "Quality",
            "f1",
            ("not_equivalent", "equivalent"),
            _BINARY,
            hub_text="sentence1",
            hub_pair="sentence2",
        ),
        "stsb": GlueTask("STS-B", "sentence1", "sentence2", "score", "pearson", None),
        "qqp": GlueTask("QQP", "question1", "question2", "is_duplicate", "f1", ("not_duplicate", "duplicate"), _BINARY),
        "mnli": GlueTask(
            "MNLI",
            "sentence1",
            "sentence2",
            "gold_label",
            "accuracy",
            ("entailment", "neutral", "contradiction"),
            dev="dev_matched",
            hub_text="premise",
            hub_pair="hypothesis",
        ),
        "qnli": GlueTask("QNLI", "question", "sentence", "label", "accuracy", _ENTAILS),
        "rte": GlueTask("RTE", "sentence1", "sentence2", "label", "accuracy", _ENTAILS),
        "wnli": GlueTask("WNLI", "sentence1", "sentence2", "label", "accuracy", ("not_entailment", "entailment"), _BINARY),
    }
)


def read_glue(name: str, split: str, data_dir: str | Path | None = None) -> TextData:
    """The split "train" or "dev" of a task, from the original files below `data_dir`, or from the hub when it is None.

    Raises `DataError` for an unknown task or a file that is not there.
    """
    task = _task(name)
    if data_dir is None:
        hub_split = {"dev": "validation" + ("_matched" if name == "mnli" else "")}.get(split, split)
        return read_hub(HUB, name, hub_split, task.hub_text or task.text, "label", task.hub_pair or task.pair)
    return read_glue_file(name, Path(data_dir) / task.folder / f"{task.dev if split == 'dev' else split}.tsv")


def read_glue_file(name: str, path: str | Path) -> TextData:
    """The rows of a task's file in the form of the original distribution, its labels by their names.

    Raises `DataError` for an unknown task, a file that is not there or a label that the task does not have.
    """
    task, path = _task(name), Path(path)
    data = read_headless(path, *task.headless) if task.headless else read_file(path, task.text, task.label, task.pair)
    if task.labels is None:
        return data
    names = dict(zip(task.written or task.labels, task.labels, strict=True))
    unknown = sorted(set(data.labels) - names.keys())
    if unknown:
        raise DataError(f"{path} has the label {unknown[0]!r:.60}; expected one of {', '.join(names)}.")
    return replace(data, labels=[names[label] for label in data.labels])


def _task(name: str) -> GlueTask:
    if name not in TASKS:
        raise DataError(f"task {name!r} is none of GLUE's: {', '.join(TASKS)}.")
    return TASKS[name]
