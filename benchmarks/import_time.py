"""G11: `import loralib` and every public name of it, against `import torch` alone, each in a fresh interpreter."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from benchmarks.goals import Benchmark, Goal, column
from benchmarks.harness import OURS, Case, Contender, Row, timed
from benchmarks.peers import PEFT

TORCH = "torch"


@dataclass(frozen=True)
class Import(Case):
    """What is imported first, and whether every name of ours is used, and PEFT imported for comparison."""

    group_title = "import"
    case_title = "in a fresh interpreter"
    first: str = TORCH
    everything: bool = True


def contenders(case: Import, device: str, lora: ModuleType) -> Mapping[str, Contender]:
    programs = {case.first: f"import {case.first}", OURS: "import loralib"}
    if case.everything:
        programs |= {OURS: "import loralib\nfor name in loralib.__all__: getattr(loralib, name)", PEFT: "import peft"}

    places = [str(Path(lora.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}

    def starting(program: str) -> Contender:
        return Contender(lambda: subprocess.run([sys.executable, "-c", program], env=environment, check=True))

    return {name: starting(program) for name, program in programs.items()}


def goals(rows: list[Row]) -> list[Goal]:
    (ours,), (first,) = (column(rows, "milliseconds", name) for name in (OURS, rows[0]["contender"]))
    return [Goal("G11", f"seconds more than `import {rows[0]['first']}`", (ours - first) / 1e3, at_most=0.3)]


BENCHMARK = Benchmark(
    cases=[Import()],
    quick=[Import()],
    smallest=Import("json", everything=False),
    measure=timed(contenders, memory=False),
    goals=goals,
    axis="time / import torch",
)
