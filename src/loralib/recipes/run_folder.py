"""The run folder: what a run writes, and how it is found again.

RUN/config.yaml          every option, resolved        RUN/metrics.json       what came out
RUN/adapter/             LoRA: the adapter             RUN/model/             other methods: the whole model
RUN/merged/              with --save-merged            RUN/learning_curve.png
RUN/checkpoints/         for --resume                  RUN/tensorboard/
RUN/submission/          a GLUE task's test set, predicted
RUN/generated/           texts that were generated, by split
"""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from ..errors import LoRAError, RunError
from ..storage.atomic import write_atomically
from .options import TrainOptions

CONFIG, LABELS, METRICS = "config.yaml", "labels.json", "metrics.json"
ADAPTER, MODEL, MERGED, CHECKPOINTS, LOGS = "adapter", "model", "merged", "checkpoints", "tensorboard"
SEEDS = "seeds.yaml"  # in a folder that holds a run for each of several seeds
CURVE, SUBMISSION, GENERATED = "learning_curve.png", "submission", "generated"

_PARTS = {CONFIG, LABELS, METRICS, ADAPTER, MODEL, MERGED, CHECKPOINTS, LOGS, CURVE, SUBMISSION, GENERATED}


def check_free(folder: Path, overwrite: bool, resume: bool) -> None:
    """`RunError` unless a run may write to `folder`: it is new or empty, or may be overwritten, or is to be resumed."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give another --output.")
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and overwrite and (foreign := {path.name for path in folder.iterdir()} - _PARTS):
        raise RunError(f"{folder} holds what no run wrote ({', '.join(sorted(foreign)[:3])}); give another --output.")
    if occupied and not overwrite and not resume:
        raise RunError(
            f"{folder} exists and is not empty; add --resume to continue the run in it, or --overwrite to replace it."
        )
    if resume and not (folder / CONFIG).is_file():
        raise RunError(f"{folder} holds no run to resume ({CONFIG} is missing); leave out --resume to begin one.")


def clear(folder: Path) -> None:
    """Remove what an earlier run wrote to `folder`."""
    for part in _PARTS:
        path = folder / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_options(folder: Path, options: TrainOptions, labels: list[str] | None) -> None:
    """Write every option and the names of the classes (None for regression)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / LABELS, (json.dumps(labels) + "\n").encode())
    write_atomically(folder / CONFIG, yaml.safe_dump(options.to_dict(), sort_keys=False).encode())


def read_options(folder: Path) -> tuple[TrainOptions, list[str] | None]:
    """The options of the run in `folder` and the names of its classes; `RunError` when it holds no run."""
    path = folder / CONFIG
    if not path.is_file():
        raise RunError(f"{folder} is no run folder ({CONFIG} is missing); give a folder that loralib train wrote.")
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        labels: list[str] | None = json.loads((folder / LABELS).read_text(encoding="utf-8"))
        return TrainOptions(**values), labels
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, OSError, LoRAError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path} or {LABELS} beside it is damaged ({reason}); train again, or restore it.") from None


def trained_part(folder: Path, options: TrainOptions) -> Path:
    """The folder of the adapter or whole model that the run in `folder` trained; `RunError` when it is not finished."""
    saved = folder / (ADAPTER if options.method == "lora" else MODEL)
    if not saved.is_dir() or not (folder / METRICS).is_file():
        raise RunError(f"the run in {folder} is not finished ({saved.name}/ or {METRICS} is missing); finish it with --resume.")
    return saved


def seeds(folder: Path) -> list[Path]:
    """The finished runs in `folder`, a folder of seeds, by seed; `folder` itself when it is none.

    Raises `RunError` when no seed is finished.
    """
    if not (folder / SEEDS).is_file():
        return [folder]
    done = (path.parent for path in folder.glob(f"seed-*/{METRICS}"))
    found = sorted(done, key=lambda run: int(run.name.rpartition("-")[2]))
    if not found:
        raise RunError(f"no seed in {folder} is finished; go on with: loralib train --output {folder} --resume")
    return found


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write what came out."""
    write_atomically(folder / METRICS, (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())


def size(folder: Path) -> int:
    """The bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
