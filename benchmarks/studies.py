"""The paper's Tables 5, 6, 18 and 16 on a small encoder: which matrices, which rank, how many rows: `make studies`.

MiniLM, three seeds, LoRA of query and value unless the study says otherwise, at most ROWS training rows (a sample, another one
for each seed) and EPOCHS epochs, scored on the whole development set after the last one.

    matrices   nine sets of matrices with the parameters that rank 4 has on query and value      MRPC, CoLA
    rank       r = 1, 2, 4, 8 and 64 under both rules of alpha, lora_alpha = 16 for all          MRPC, CoLA
    rows       100, 1,000 and all rows, by five methods; the first two for at least 200 steps    MRPC

    python -m benchmarks.studies [STUDY …]     every run is kept when it is interrupted, and goes on

studies.csv holds a run a row, and what the command says of each study is printed.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import RESULTS, provenance, read_rows, write_rows
from loralib.cli import guarded
from loralib.cli import main as loralib
from loralib.recipes.studies import PLOTS, STUDIES, TABLE, Study

RUNS = Path("runs/studies")
IMAGES = Path(__file__).parent.parent / "docs" / "images"
ROWS, EPOCHS, SEEDS = 800, 2, 3
TASKS: Mapping[Study, Sequence[str]] = {"matrices": ("mrpc", "cola"), "rank": ("mrpc", "cola"), "rows": ("mrpc",)}
METRICS = {"mrpc": "accuracy", "cola": "matthews"}
RATES = {"lora": 1e-3, "last-layers": 5e-2, "full": 1e-4}  # the last two as in `benchmarks.glue`
OWN: Mapping[Study, Sequence[str]] = {
    "matrices": ("--learning-rate-lora", str(RATES["lora"])),
    "rank": ("--learning-rate-lora", str(RATES["lora"]), "--lora-alpha", "16"),
    "rows": (
        *("--rows", "100", "1000", "--methods", "lora,last-layers,full,bitfit,prefix"),
        *(word for method, rate in RATES.items() for word in (f"--learning-rate-{method}", str(rate))),
    ),
}
COLUMNS = ("study", "task", "matrices", "rule", "r", "rows", "method")  # what tells the cells apart
DROPPED = ("folder",)
Row = dict[str, Any]


def words(study: Study, task: str, data: Path, folder: Path, budget: Sequence[str]) -> list[str]:
    """The words of one study."""
    shared = ["--model", "minilm", "--task", task, "--data-dir", str(data / "glue"), "--output", str(folder)]
    shared += ["--metric-for-best-model", METRICS[task], "--best-epoch", "false", "--group-by-length", "true"]
    going_on = ["--resume"] if folder.is_dir() else []
    return ["study", study, *shared, "--seeds", str(SEEDS), *OWN[study], *budget, *going_on]


def budget_of(study: Study) -> list[str]:
    """The options that bound the work."""
    rows = [] if study == "rows" else ["--max-train-rows", str(ROWS)]
    return [*rows, "--num-train-epochs", str(EPOCHS), "--batch-size", "16"]


def measured(study: Study, task: str, data: Path, folder: Path, budget: Sequence[str]) -> list[Row]:
    """Train a study, or keep what is there, and return its runs."""
    code = loralib(words(study, task, data, folder, budget))
    if code == 130:
        raise KeyboardInterrupt
    if code:
        sys.exit(code)
    found = read_rows(folder / TABLE)
    named = [{name: {"study": study, "task": task, **row}.get(name) for name in COLUMNS} for row in found]
    rest = [{name: value for name, value in row.items() if name not in (*COLUMNS, *DROPPED)} for row in found]
    return [{**names, **values} for names, values in zip(named, rest, strict=True)]


def record(rows: Sequence[Row], studies: Sequence[Study], origin: Mapping[str, str]) -> Path:
    """Write the runs of these studies to studies.csv; those of others, which stand there, stay."""
    path = RESULTS / "studies.csv"
    others = [row for row in read_rows(path) if row["study"] not in studies] if path.is_file() else []
    return write_rows("studies", [*others, *({**row, **origin} for row in rows)], {} if others else origin)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"{', '.join(STUDIES)} (default: all)")
    studies: list[Study] = [study for study in STUDIES if study in (parser.parse_args().studies or STUDIES)]
    data = os.environ.get("LORALIB_DATA")
    if not data:
        print("set LORALIB_DATA to the folder that holds glue/", file=sys.stderr)
        return 2
    origin = provenance()
    for study in studies:
        rows: list[Row] = []
        for task in TASKS[study]:
            folder = RUNS / f"{study}-{task}"
            rows += measured(study, task, Path(data), folder, budget_of(study))
            shutil.copyfile(folder / PLOTS[0], IMAGES / f"study_{study}_{task}.png")
        print(f"Wrote {record(rows, [study], origin)}.")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
