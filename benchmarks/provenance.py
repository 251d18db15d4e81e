"""Where a figure comes from: the machine, the versions and the commit."""

import csv
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import loralib

RESULTS = Path(__file__).parent / "results"


def _processor(device: str | None) -> str:
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        return torch.cuda.get_device_name()
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


def _git(*words: str) -> str:
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    run = subprocess.run(
        ["git", *words], cwd=Path(__file__).parent.parent, env=quiet, capture_output=True, text=True, check=False
    )
    return run.stdout.strip()


def _version(package: str) -> str:
    """The version that is installed, or nothing."""
    with suppress(PackageNotFoundError):
        return version(package)
    return ""


def provenance(device: str | None = None) -> dict[str, str]:
    """The columns that every row of results ends with. device: "cpu" or "cuda"; None means CUDA where there is one.

    A commit whose `src/` has been changed since is marked with a "+".
    """
    commit = _git("rev-parse", "--short", "HEAD")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": _processor(device),
        "loralib": loralib.__version__,
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "peft": _version("peft"),
        "commit": commit + ("+" if _git("status", "--porcelain", "--", "src") else "") if commit else "unknown",
    }


def write_rows(name: str, rows: Sequence[Mapping[str, Any]], origin: Mapping[str, str], folder: Path | None = None) -> Path:
    """Write `<name>.csv` to the results, or another folder: each row followed by its `provenance` (taken before measuring).

    What a row lacks is empty. The path is returned.
    """
    path = (folder or RESULTS) / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys(column for row in rows for column in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *origin], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **origin} for row in rows)
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of results: numbers as numbers, what is empty as None."""
    with path.open(newline="") as file:
        return [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(name: str, text: str) -> str | int | float | None:
    if name in ("commit", "loralib", "torch", "transformers", "peft") or not text:
        return text or None
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
