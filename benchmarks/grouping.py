"""Batches of rows of like length against batches at random: accuracy and time, three seeds: `python -m benchmarks.grouping`.

MiniLM with LoRA of rank 8 on query and value, on 3,000 rows of SST-2 (two epochs) and all 3,668 of MRPC (three), in batches of
16, scored on the development set after the last epoch. The two kinds of batches alternate, each run in a process of its own.
The seconds are those of training with its evaluations.

    python -m benchmarks.grouping [--tasks sst2 mrpc] [--record]    (needs LORALIB_DATA; finished runs are kept)
"""

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.provenance import provenance, write_rows
from loralib.cli import guarded
from loralib.recipes import comparison
from loralib.recipes.options import TrainOptions

RUNS = Path("runs/grouping")
SEEDS = 3
BUDGETS: dict[str, dict[str, Any]] = {
    "sst2": {"max_train_rows": 3000, "num_train_epochs": 2, "learning_rate": 1e-3},
    "mrpc": {"num_train_epochs": 3, "learning_rate": 2e-3},
}
SHARED = {"model": "minilm", "batch_size": 16, "r": 8, "lora_alpha": 16.0, "layers": "query,value", "best_epoch": False}
METRIC = {"metric_for_best_model": "accuracy"}
Row = dict[str, Any]


def measure(data: Path, folder: Path, tasks: Sequence[str], seeds: int, budget: dict[str, Any]) -> Iterator[Row]:
    """A row a run. budget: replaces options of all tasks."""
    for task in tasks:
        for seed in range(seeds):
            for grouped in (True, False):
                given = {**SHARED, **METRIC, "task": task, "data_dir": str(data / "glue"), **BUDGETS[task], **budget}
                options = TrainOptions.of({**given, "seed": seed, "group_by_length": grouped})
                run = folder / f"{task}-{seed}-{'like' if grouped else 'random'}"
                found = comparison.train_apart(options, run, resume=True, keep_weights=False)
                yield {
                    "task": task,
                    "seed": seed,
                    "grouped": grouped,
                    "train_rows": found["train_rows"],
                    "epochs": options.num_train_epochs,
                    "accuracy": round(found["metrics"]["accuracy"], 4),
                    "train_seconds": round(found["train_seconds"], 1),
                    "threads": found["threads"],
                }


def table(rows: Sequence[Row]) -> Table:
    """A line a task: means over the seeds, their spread, and the time of one kind over that of the other."""
    shown = Table("task", "like lengths", "at random", "difference by seed", "time / at random")
    for task in dict.fromkeys(row["task"] for row in rows):
        like, random = ([row for row in rows if row["task"] == task and row["grouped"] is kind] for kind in (True, False))
        pairs = list(zip(like, random, strict=False))
        by_seed = ", ".join(f"{100 * (one['accuracy'] - other['accuracy']):+.1f}" for one, other in pairs)
        times = statistics.median(one["train_seconds"] / other["train_seconds"] for one, other in pairs)
        means = [f"{100 * statistics.fmean(row['accuracy'] for row in of):.1f} %" for of in (like, random)]
        shown.add_row(task, *means, by_seed, f"{times:.2f}")
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(BUDGETS), default=tuple(BUDGETS), help="default: both")
    parser.add_argument("--record", action="store_true", help="write results/grouping.csv")
    given = parser.parse_args()
    data = os.environ.get("LORALIB_DATA")
    if not data:
        print("set LORALIB_DATA to the folder that holds glue/", file=sys.stderr)
        return 2
    origin, console = provenance(), Console()
    rows = list(measure(Path(data), RUNS, given.tasks, SEEDS, {}))
    console.print(table(rows))
    if given.record:
        console.print(f"Wrote {write_rows('grouping', rows, origin)}.", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
