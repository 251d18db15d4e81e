"""Library calls leave the process as they found it: `train`, `generate` and `merge_checkpoint`, in a fresh interpreter each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.nlg.conftest import options as writing
from recipes.nlg.conftest import run as write

pytestmark = pytest.mark.slow

pytest_plugins = ["recipes.conftest", "recipes.nlg.conftest"]

# What a call must not change: settings of libraries, and what Python calls when something happens.
STATE = """
import csv, gc, logging, os, signal, sys, threading, warnings
import datasets, torch, transformers
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging as transformers_logging
from torch.nn.modules import module as modules
import loralib as lora
import loralib.recipes.run, loralib.recipes.nlg.generator

def state():
    loggers = [logging.getLogger(name) for name in ("", "transformers", "datasets", "torch", "accelerate", "loralib")]
    return {
        "verbosity of transformers": transformers_logging.get_verbosity(),
        "bars of transformers": transformers_logging.is_progress_bar_enabled(),
        "bars of huggingface_hub": not are_progress_bars_disabled(),
        "bars of datasets": not datasets.are_progress_bars_disabled(),
        "loggers": [(log.name, log.level, log.propagate, log.disabled, list(map(str, log.handlers))) for log in loggers],
        "warnings": list(map(str, warnings.filters)),
        "csv": csv.field_size_limit(),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "threads": sorted(t.name.split("_")[0] for t in threading.enumerate() if not t.daemon),
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)],
        "hooks of Python": (sys.excepthook is sys.__excepthook__, threading.excepthook is threading.__excepthook__),
        "hooks of all modules": {n: len(h) for n, h in vars(modules).items() if n.startswith("_global_") and "hooks" in n},
        "torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), str(torch.get_default_dtype())),
        "products": (torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()),
        "oneDNN": torch.backends.mkldnn.enabled,
        "collector": (gc.isenabled(), gc.get_threshold()),
        "folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items()},
        "streams": (sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__),
    }

before = state()
"""
AFTER = """
import json
after = state()
print(json.dumps([[name, str(before[name]), str(after[name])] for name in before if before[name] != after[name]]))
"""


def changed(call: str) -> list[list[str]]:
    """What `call` left changed: the name, before and after."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", STATE + call + AFTER], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_train_leaves_the_process_as_it_was(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    chosen = {"model": str(encoder), "data": str(reviews / "train.tsv"), "num_train_epochs": 1, "max_train_rows": 32}
    assert (
        changed(f"""
from pathlib import Path
from loralib.recipes.options import TrainOptions
loralib.recipes.run.train(TrainOptions.of({chosen!r}), Path({str(tmp_path / "run")!r}))
""")
        == []
    )


def test_generate_leaves_the_process_as_it_was(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    write(tmp_path / "run", writing(gpt2, meals, num_train_epochs=0.2))
    assert (
        changed(f"""
from pathlib import Path
from loralib.recipes.presets.nlg import Decoding
opened = loralib.recipes.nlg.generator.open_run(Path({str(tmp_path / "run")!r}))
opened.generate(["name : Aromi | food : Thai"], Decoding(beams=2, max_new_tokens=4))
""")
        == []
    )


def test_merge_checkpoint_leaves_the_process_as_it_was(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    write(tmp_path / "run", writing(gpt2, meals, num_train_epochs=0.2))
    assert (
        changed(f"""
lora.merge_checkpoint({str(gpt2)!r}, lora.load({str(tmp_path / "run" / "adapter")!r}), {str(tmp_path / "merged")!r})
""")
        == []
    )


def test_what_a_call_leaves_changed_is_seen() -> None:
    calls = {
        "verbosity of transformers": "transformers_logging.set_verbosity_error()",
        "bars of transformers": "transformers_logging.disable_progress_bar()",
        "bars of datasets": "datasets.disable_progress_bars()",
        "csv": "csv.field_size_limit(1 << 30)",
        "threads of torch": "torch.set_num_threads(torch.get_num_threads() + 1)",
        "signals": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "hooks of all modules": "modules.register_module_forward_hook(print)",
        "warnings": "warnings.simplefilter('error')",
        "environment": "os.environ['TOKENIZERS_PARALLELISM'] = 'maybe'",
    }
    assert calls.keys() <= {name for name, _, _ in changed("\n".join(calls.values()))}
