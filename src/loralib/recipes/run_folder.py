"""The run folder: what a run writes, and how it is found again.

RUN/config.yaml          every option, resolved        RUN/metrics.json       what came out
RUN/adapter/             LoRA, prefix: the adapter     RUN/model/             other methods: the whole model
RUN/merged/              with --save-merged            RUN/learning_curve.png
RUN/checkpoints/         for --resume                  RUN/tensorboard/
RUN/submission/          a GLUE task's test set, predicted
RUN/generated/           texts that were generated, by split
RUN/samples.jsonl        chat: answers to held-out prompts, at every evaluation
RUN/.replaced/           the run that this one replaces, until this one is whole
RUN/.loralib.lock        which process writes it, as long as one does
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from .. import expressions
from ..errors import LoRAError, RunError
from ..storage.atomic import write_atomically
from ..storage.folders import MARK, REPLACED, Writer
from ..storage.json_text import as_json
from ..storage.places import what_is_at
from ..storage.plain_yaml import read_yaml
from .options import PERMISSION, TrainOptions
from .resolved import resolved
from .task import ADAPTERS

CONFIG, LABELS, METRICS = "config.yaml", "labels.json", "metrics.json"
ADAPTER, MODEL, MERGED, CHECKPOINTS, LOGS = "adapter", "model", "merged", "checkpoints", "tensorboard"
CURVE, SUBMISSION, GENERATED, SAMPLES = "learning_curve.png", "submission", "generated", "samples.jsonl"
SEEDS, SUMMARY = "seeds.yaml", "summary.json"  # in a folder that holds a run for each of several seeds

PARTS = {CONFIG, LABELS, METRICS, ADAPTER, MODEL, MERGED, CHECKPOINTS, LOGS, CURVE, SUBMISSION, GENERATED, SAMPLES, MARK}


_OF_A_MODEL = r"[^/]+\.(json|safetensors|jinja|model|spm)|(vocab|merges)\.txt"
_OF_A_RUN = "|".join(
    [
        *map(re.escape, (CONFIG, LABELS, METRICS, CURVE, SAMPLES)),
        rf"{ADAPTER}/adapter_(config\.json|model\.safetensors)",
        rf"({ADAPTER}|{MODEL}|{MERGED})/({_OF_A_MODEL})",
        rf"{CHECKPOINTS}/checkpoint-\d+/(.+/)?({_OF_A_MODEL}|[^/]+\.(bin|pth?|distcp)|README\.md|latest)",
        rf"{LOGS}/events\.out\.tfevents\.[^/]+",
        rf"{SUBMISSION}/[^/]+\.tsv",
        rf"{GENERATED}/[^/]+\.(jsonl|txt)",
    ]
)
_OF_SEEDS = rf"{re.escape(SEEDS)}|{re.escape(SUMMARY)}|seed-\d+/({_OF_A_RUN})"

RUN = Writer("run", _OF_A_RUN, done=METRICS)
MANY = Writer("seeds", _OF_SEEDS, done=SUMMARY)


def holding_runs(title: str, own: str, roots: str, done: str) -> Writer:
    """Who writes files with the paths `own`, and in the folders `roots` runs, with the options of each next to it."""
    return Writer(title, rf"{own}|({roots})(\.yaml|/([\w-]+/)*([\w-]+\.yaml|({_OF_A_RUN})))", done, alone=True)


def holds_run(folder: Path) -> bool:
    """Whether `folder` holds a run, finished or not."""
    return (folder / CONFIG).is_file() and (folder / LABELS).is_file()


def has_begun(folder: Path) -> bool:
    """Whether there is anything in `folder` to go on from: a checkpoint or a finished run, at any depth."""
    found = [path for name in (METRICS, "trainer_state.json") for path in folder.rglob(name)]
    return any(REPLACED not in path.relative_to(folder).parts for path in found)


def write_options(folder: Path, options: TrainOptions, labels: list[str] | None) -> None:
    """Write every option and the names of the classes (None for regression)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / LABELS, (as_json(labels) + "\n").encode())
    write_atomically(folder / CONFIG, as_yaml(resolved(options)))


def read_options(folder: Path) -> tuple[TrainOptions, list[str] | None]:
    """The options of the run in `folder` and the names of its classes; `RunError` when it holds no run."""
    path = folder / CONFIG
    if not path.is_file():
        reason = f"{CONFIG} is missing" if folder.is_dir() else f"it {what_is_at(folder)}"
        raise RunError(f"{folder} is not a run folder ({reason}); {_way_to_a_run(folder)}.")
    with _damage_named(f"{path} or {LABELS} next to it"):
        labels: list[str] | None = json.loads((folder / LABELS).read_text(encoding="utf-8"))
        if labels is not None and (not isinstance(labels, list) or not all(isinstance(label, str) for label in labels)):
            raise ValueError(f"{LABELS} is not a list of names")
        values = dict(read_yaml(path))
    return _options(path, values), labels


def _way_to_a_run(folder: Path) -> str:
    """What to give instead of a folder that is not a run: a run in it, the run that it is in, or any."""
    if inside := next((path.parent for path in sorted(folder.glob(f"*/{CONFIG}")) if holds_run(path.parent)), None):
        return f"give one of the runs in it, such as {inside}"
    if around := next((parent for parent in folder.parents if holds_run(parent)), None):
        return f"give the run that it is in, {around}"
    return "give a folder that loralib train wrote"


def write_seeds(folder: Path, options: TrainOptions, seeds: int) -> None:
    """Write which options are trained, with how many seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SEEDS, as_yaml({"seeds": seeds, "options": resolved(options)}))


def read_seeds(folder: Path) -> tuple[TrainOptions, int]:
    """The options and the number of seeds that `folder` was begun with; `RunError` when they cannot be read."""
    path = folder / SEEDS
    with _damage_named(str(path)):
        stored = read_yaml(path)
        values, seeds = dict(stored["options"]), int(stored["seeds"])
    return _options(path, values), seeds


def as_yaml(values: Mapping[str, Any]) -> bytes:
    """The values as a YAML file, in their order."""
    return yaml.safe_dump(dict(values), sort_keys=False).encode()


def check_names(path: Path, values: Mapping[str, Any]) -> None:
    """`RunError` for options in a file that a run does not have, as files of earlier versions do, or that no file may give."""
    if PERMISSION in values:
        raise RunError(
            f"{path} asks to run Python code that comes with a model, which a file cannot allow",
            f"take {PERMISSION} out of it, and give TrainOptions({PERMISSION}=True) if you trust the model's folder",
            option=f"take {PERMISSION} out of it, and add --trust-remote-code if you trust the model's folder",
        )
    known = {option.name for option in fields(TrainOptions)}
    if unknown := [name for name in values if name not in known]:
        raise RunError(
            f"{path} has the option {unknown[0]!r}, which runs do not have (LoRA's own stand under lora:, and others have the "
            "names of transformers' TrainingArguments, such as num_train_epochs); rename it, or train again."
        )
    for field, expression in _expressions(values.get("lora")):
        if problem := expressions.problem(expression):
            raise RunError(f"{path}: {field}: {expression!r:.80} {problem}; write names, or simpler expressions.")


def _expressions(lora: object) -> Iterator[tuple[str, str]]:
    """The regular expressions among LoRA's options in a file, with the names of their fields."""
    for field, value in lora.items() if isinstance(lora, Mapping) else ():
        found = value if isinstance(value, Mapping) else [value] if field in ("target_modules", "exclude_modules") else []
        yield from ((field, expression) for expression in found if isinstance(expression, str))


def _options(path: Path, values: Mapping[str, Any]) -> TrainOptions:
    check_names(path, values)
    with _damage_named(str(path)):
        options = TrainOptions.of(values)
        from_before_templates = "packing" not in values and options.kind == "generation" and options.chat_template is None
        return options.updated({"chat_template": "none"}) if from_before_templates else options


@contextmanager
def _damage_named(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, LoRAError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{what} is damaged ({reason}); restore it, or train again with --overwrite.") from None


def part_of(folder: Path, options: TrainOptions) -> Path:
    """The folder, in that of the run, of the adapter or whole model that a run with these options trains."""
    return folder / (ADAPTER if options.method in ADAPTERS else MODEL)


def trained_part(folder: Path, options: TrainOptions) -> Path:
    """The folder of the adapter or whole model that the run in `folder` trained; `RunError` when it is not finished."""
    saved = part_of(folder, options)
    if not saved.is_dir() or not (folder / METRICS).is_file():
        raise RunError(f"the run in {folder} is not finished ({saved.name}/ or {METRICS} is missing); finish it with --resume.")
    return saved


def seed_runs(options: TrainOptions, folder: Path, seeds: Iterable[int]) -> list[tuple[TrainOptions, Path]]:
    """The run of each seed, and its place in `folder`."""
    return [(replace(options, seed=seed), folder / f"seed-{seed}") for seed in seeds]


def finished_seeds(folder: Path) -> list[Path]:
    """The finished runs in `folder`, by seed."""
    done = (path.parent for path in folder.glob(f"seed-*/{METRICS}"))
    return sorted(done, key=lambda run: int(run.name.rpartition("-")[2]))


def runs_of(folder: Path) -> list[Path]:
    """The finished runs of a folder of seeds; of any other, itself. Raises `RunError` when no seed is finished."""
    if not (folder / SEEDS).is_file():
        return [folder]
    if not (found := finished_seeds(folder)):
        raise RunError(f"no seed in {folder} is finished; go on with: loralib train --output {folder} --resume")
    return found


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """What came out of the run in `folder`; None when it is not finished."""
    path = folder / METRICS
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write what came out; a number that is not finite, such as a gradient's length in float16, as null."""
    write_atomically(folder / METRICS, (as_json(metrics, indent=2) + "\n").encode())


def before_and_after(folder: Path) -> list[str]:
    """A prompt with its answers before and after training, a line each; none where a run has no samples."""
    path = folder / SAMPLES
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:  # not splitlines, to which U+2028 in a text ends a line
        first, *_, last = [json.loads(line)["answers"][0] for line in lines] * 2
    return [f"prompt: {first['prompt']}", f"before: {first['answer']}", f"after: {last['answer']}"]


def size(folder: Path) -> int:
    """The bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
