"""The paper's Tables 5, 6, 18 and 16 on a small encoder: which matrices, which rank, how many rows: `make studies`.

MiniLM, three seeds, LoRA of query and value unless the study says otherwise, the rows of `ROWS` (a sample, another one for each
seed), scored on the whole development set after the last epoch.

    matrices   nine sets of matrices with the parameters that rank 4 has on query and value
    rank       r = 1, 2, 4, 8 and 64 under both rules of alpha, lora_alpha = 16 for all
    rows       100, 1,000 and 9,000 rows, by five methods; few rows are seen more often, for at least 200 steps

    python -m benchmarks.studies [STUDY …] [--tasks TASK …]     every run is kept when it is interrupted, and goes on

studies.csv holds a run a row, and what the command says of each study is printed. Within such budgets MiniLM learns nothing of
CoLA (3,000 rows twice: Matthews 0), so SST-2 and MRPC are asked.
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
from loralib.train import measure

RUNS = Path("runs/studies")
IMAGES = Path(__file__).parent.parent / "docs" / "images"
SEEDS = 3
TASKS: Mapping[Study, Sequence[str]] = {"matrices": ("sst2", "mrpc"), "rank": ("sst2", "mrpc"), "rows": ("sst2",)}
ROWS, EPOCHS = {"sst2": 1000, "mrpc": 1000}, {"sst2": 2, "mrpc": 3}
RATES = {"lora": 3e-3, "last-layers": 5e-2, "full": 1e-4}  # the last two as in `benchmarks.glue`
OWN: Mapping[Study, Sequence[str]] = {
    "matrices": ("--learning-rate-lora", str(RATES["lora"])),
    "rank": ("--learning-rate-lora", str(RATES["lora"]), "--lora-alpha", "16"),
    "rows": (
        *("--rows", "100", "1000", "--methods", "lora,last-layers,full,bitfit,prefix", "--eval-steps", "100"),
        *(word for method, rate in RATES.items() for word in (f"--learning-rate-{method}", str(rate))),
    ),
}
COLUMNS = ("study", "task", "matrices", "rule", "r", "rows", "method")  # what tells the cells apart
DROPPED = ("folder",)
Row = dict[str, Any]


def words(study: Study, task: str, data: Path, folder: Path, budget: Sequence[str]) -> list[str]:
    """The words of one study."""
    shared = ["--model", "minilm", "--task", task, "--data-dir", str(data / "glue"), "--output", str(folder)]
    shared += ["--metric-for-best-model", "accuracy", "--best-epoch", "false", "--group-by-length", "true"]
    shared += ["--bf16", str(not measure.emulates_bf16()).lower(), "--batch-size", "16"]
    going_on = ["--resume"] if folder.is_dir() else []
    return ["study", study, *shared, "--seeds", str(SEEDS), *OWN[study], *budget, *going_on]


def budget_of(study: Study, task: str) -> list[str]:
    """The options that bound the work."""
    rows, epochs = (9000, 1) if study == "rows" else (ROWS[task], EPOCHS[task])
    return ["--max-train-rows", str(rows), "--num-train-epochs", str(epochs)]


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


def record(rows: Sequence[Row], origin: Mapping[str, str]) -> Path:
    """Write the runs of a study of a task to studies.csv; those of others, which stand there, stay."""
    path, names = RESULTS / "studies.csv", ("study", "task")
    found = read_rows(path) if path.is_file() else []
    others = [row for row in found if [row[name] for name in names] != [rows[0][name] for name in names]]
    return write_rows("studies", [*others, *({**row, **origin} for row in rows)], {} if others else origin)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"{', '.join(STUDIES)} (default: all)")
    parser.add_argument("--tasks", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), help="default: all")
    parsed = parser.parse_args()
    if unknown := set(parsed.studies) - set(STUDIES):
        parser.error(f"{unknown.pop()} is no study; give some of {', '.join(STUDIES)}")
    data = os.environ.get("LORALIB_DATA")
    if not data:
        print("set LORALIB_DATA to the folder that holds glue/", file=sys.stderr)
        return 2
    for study in STUDIES:
        for task in TASKS[study]:
            if task in parsed.tasks and study in (parsed.studies or STUDIES):
                origin, folder = provenance(), RUNS / f"{study}-{task}"
                rows = measured(study, task, Path(data), folder, budget_of(study, task))
                shutil.copyfile(folder / PLOTS[0], IMAGES / f"study_{study}_{task}.png")
                print(f"Wrote {record(rows, origin)}.")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
