"""Where a figure comes from: the machine, the versions and the commit."""

import csv
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import loralib

RESULTS = Path(__file__).parent / "results"


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


def provenance() -> dict[str, str]:
    """The columns that every row of results ends with."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": _processor(),
        "loralib": loralib.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit or "unknown",
    }


def write_rows(name: str, rows: Sequence[Mapping[str, Any]], origin: Mapping[str, str]) -> Path:
    """Write `results/<name>.csv`, each row followed by its `provenance` (taken before measuring); the path is returned."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *origin], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **origin} for row in rows)
    return path
