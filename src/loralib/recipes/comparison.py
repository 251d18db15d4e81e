"""LoRA, last layers and full fine-tuning side by side under one budget of rows and epochs.

Each run is a process of its own (`loralib train`), so that its peak memory is its own.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import RunError
from . import runs
from .options import NEED_FROZEN, NEED_LORA, Method

INTERRUPTED = 130
METHODS: tuple[Method, ...] = ("lora", "last-layers", "full")


def compare(
    options: Mapping[str, Any],
    learning_rates: Mapping[str, float],
    folder: Path,
    methods: Sequence[Method] = METHODS,
) -> list[dict[str, Any]]:
    """Train once by each method and return what the runs' `metrics.json` hold, in the order of `methods`.

    options: as `TrainOptions`, the same for all (what only LoRA knows goes to LoRA alone). learning_rates: by method.
    folder: gets one run folder for each method.
    Raises `RunError` when a run fails; what is wrong has then been printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for method in methods:
        run = folder / method
        idle = {"lora": (), "last-layers": NEED_LORA, "full": NEED_LORA + NEED_FROZEN}[method]
        shared = {name: value for name, value in options.items() if name not in idle}
        values = {**shared, "method": method, "learning_rate": learning_rates[method], "output": str(run)}
        config = folder / f"{method}.yaml"
        config.write_text(yaml.safe_dump(values))
        words = [sys.executable, "-m", "loralib", "train", "--config", str(config), "--overwrite"]
        code = _run(words)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise RunError(f"the {method} run ended with exit code {code}.")
        results.append(json.loads((run / runs.METRICS).read_text()))
    return results


def _run(words: Sequence[str]) -> int:
    """Run a process that gets Ctrl-C itself, and wait for it to end in its own way."""
    previous = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.run(words, check=False, stdout=subprocess.DEVNULL).returncode
    finally:
        signal.signal(signal.SIGINT, previous)
