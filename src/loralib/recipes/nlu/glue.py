"""The GLUE tasks as data: where each keeps its texts and labels, and how it is scored (Wang et al. 2018, 1804.07461)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from ...errors import DataError
from .readers import TextData, Unlabelled, read_file, read_headless, read_hub, read_hub_unlabelled, read_unlabelled

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """One task, in the original distribution and on the hub.

    folder: where its files lie. text, label: their columns. pair: the column of the second text; None where there is one text.
    metric: by which it is scored. labels: the names of the classes, in order; None for regression. written: those names as the
    files write them, where they differ. splits: the development
    and test sets, by the names that `read_glue` and `read_glue_inputs` take beside "dev" and "test", where there are several.
    headless: the positions of text and label in files without column names, from 0. index: the column that numbers the rows
    of a test file. broken: whether the published files are known to hold lines with too few fields, which are passed over.
    hub_text, hub_pair: columns on the hub, where they differ.
    """

    folder: str
    text: str
    pair: str | None
    label: str
    metric: str
    labels: tuple[str, ...] | None
    written: tuple[str, ...] | None = None
    splits: tuple[str, ...] = ()
    headless: tuple[int, int] | None = None
    index: str = "index"
    broken: bool = False
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
        "qqp": GlueTask(
            "QQP",
            "question1",
            "question2",
            "is_duplicate",
            "f1",
            ("not_duplicate", "duplicate"),
            _BINARY,
            index="id",
            broken=True,
        ),
        "mnli": GlueTask(
            "MNLI",
            "sentence1",
            "sentence2",
            "gold_label",
            "accuracy",
            ("entailment", "neutral", "contradiction"),
            splits=("matched", "mismatched"),
            hub_text="premise",
            hub_pair="hypothesis",
        ),
        "qnli": GlueTask("QNLI", "question", "sentence", "label", "accuracy", _ENTAILS),
        "rte": GlueTask("RTE", "sentence1", "sentence2", "label", "accuracy", _ENTAILS),
        "wnli": GlueTask("WNLI", "sentence1", "sentence2", "label", "accuracy", ("not_entailment", "entailment"), _BINARY),
    }
)


DIAGNOSTIC = GlueTask("diagnostic", "sentence1", "sentence2", "label", "matthews", TASKS["mnli"].labels)
_MOST_BROKEN = 1e-3


def read_glue(name: str, split: str, data_dir: str | Path | None = None) -> TextData:
    """A labelled split of a task, "train" or "dev" (of MNLI also "dev_matched", the same, and "dev_mismatched"), from the
    original files below `data_dir`, or from the hub when it is None.

    Raises `DataError` for an unknown task or split, or data that cannot be had.
    """
    task = _task(name)
    file = _file_of(name, split, ("train", "dev"))
    if data_dir is not None:
        return read_glue_file(name, Path(data_dir) / task.folder / f"{file}.tsv")
    try:
        return read_hub(HUB, name, file.replace("dev", "validation"), task.hub_text or task.text, "label", _hub_pair(task))
    except DataError as error:
        raise _without_hub(error, task, file) from None


def read_glue_file(name: str, path: str | Path) -> TextData:
    """The rows of a task's file in the form of the original distribution, its labels by their names.

    Raises `DataError` for an unknown task, a file that is not there or a label that the task does not have.
    """
    task, path = _task(name), Path(path)
    if task.headless:
        data = read_headless(path, *task.headless)
    else:
        data = read_file(path, task.text, task.label, task.pair, most_broken=_MOST_BROKEN if task.broken else 0.0)
    if task.labels is None:
        return data
    names = dict(zip(task.written or task.labels, task.labels, strict=True))
    unknown = sorted(set(data.labels) - names.keys())
    if unknown:
        raise DataError(f"{path} has the label {unknown[0]!r:.60}; expected one of {', '.join(names)}.")
    return replace(data, labels=[names[label] for label in data.labels])


def read_glue_inputs(name: str, split: str = "test", data_dir: str | Path | None = None) -> Unlabelled:
    """The texts of a test set, which GLUE publishes without labels: "test" (of MNLI "test_matched", the same, and
    "test_mismatched"; also "diagnostic", the set that GLUE calls AX), from the original files or from the hub.

    Raises `DataError` for an unknown task or split, or data that cannot be had.
    """
    task = _task(name)
    if name == "mnli" and split == "diagnostic":
        task, file, config, columns = DIAGNOSTIC, split, "ax", ("premise", "hypothesis")
    else:
        file, config = _file_of(name, split, ("test",)), name
        columns = (task.hub_text or task.text, _hub_pair(task) or "")
    if data_dir is not None:
        return read_unlabelled(Path(data_dir) / task.folder / f"{file}.tsv", task.index, task.text, task.pair)
    try:
        hub_split = "test" if split == "diagnostic" else file
        return read_hub_unlabelled(HUB, config, hub_split, "idx", columns[0], columns[1] or None)
    except DataError as error:
        raise _without_hub(error, task, file) from None


def _file_of(name: str, split: str, known: tuple[str, ...]) -> str:
    """The name of the split's file, without its ending, which is also the hub's name for it but for "validation"."""
    parts = TASKS[name].splits
    names = {base: f"{base}_{parts[0]}" if parts and base != "train" else base for base in known}
    names |= {f"{base}_{part}": f"{base}_{part}" for base in known if base != "train" for part in parts}
    if split not in names:
        raise DataError(f"{name} has no split {split!r} of this kind; it has {', '.join(names)}.")
    return names[split]


def _hub_pair(task: GlueTask) -> str | None:
    return task.hub_pair or task.pair


def _without_hub(error: DataError, task: GlueTask, file: str) -> DataError:
    said = str(error).rstrip(".").removesuffix("; check the name and the network, or give a local file")
    return DataError(f"{said}; get a network, or give --data-dir, a folder that holds GLUE's own {task.folder}/{file}.tsv.")


def _task(name: str) -> GlueTask:
    if name not in TASKS:
        raise DataError(f"task {name!r} is none of GLUE's: {', '.join(TASKS)}.")
    return TASKS[name]
