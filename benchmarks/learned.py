"""What LoRA learned: the findings of the paper's section 7, asked of adapters that are trained here.

MiniLM on SST-2 (9,000 rows, 2 epochs) and MRPC (all rows, 3 epochs), SmolLM2 on E2E (800 rows, 1 epoch): LoRA on query and
value with r = 8 and 64, two seeds each, alpha the same for both ranks, as in the paper. Runs of different seeds are compared:
with one seed, two ranks start from the same rows of A. A seed also draws other rows, where not all are used.

    python -m benchmarks.learned [--tasks sst2 …]     every run is kept when it is interrupted, and goes on

learned.csv holds a figure a row, by layer:

    similarity between ranks, seeds     φ(i, j) of two runs over A, or over the right or left singular vectors of ΔW; by chance;
                                        and of the values that training started from
    amplification                       ‖ΔW‖ / ‖Uᵀ·W·V‖ with i directions of ΔW; chance: with random ones
    in ΔW's, in W's directions          ‖Uᵀ·W·V‖ / ‖W‖; chance: with random ones
    overlap                             the share of ‖ΔW‖² in the share i of W's leading directions

and learned_answers.csv what follows: a finding of the paper a row, for each task: yes, no or (within a tenth) undecided, and
the means over layers that decide it.
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from rich.console import Console
from rich.table import Table
from torch import nn

import loralib as lora
from benchmarks.provenance import provenance, write_rows
from benchmarks.report import rounded
from loralib.adapters.summary import last_name
from loralib.analysis import Directions, SubspaceSimilarity
from loralib.analysis.places import depth_of
from loralib.cli import guarded
from loralib.recipes import comparison, run_folder
from loralib.recipes.options import TrainOptions
from loralib.recipes.plan import implementation

RUNS = Path("runs/learned")
RANKS, SEEDS = "similarity between ranks", "similarity between seeds"
OWN: Mapping[str, Mapping[str, Any]] = {
    "sst2": {"model": "minilm", "max_train_rows": 9000, "num_train_epochs": 2, "lora_alpha": 16, "group_by_length": True},
    "mrpc": {"model": "minilm", "num_train_epochs": 3, "lora_alpha": 16, "group_by_length": True},
    "e2e": {
        "model": "smollm2",
        "max_train_rows": 800,
        "num_train_epochs": 1,
        "lora_alpha": 32,
        "batch_size": 8,
        "eval_fraction": 0.1,
        "max_eval_rows": 200,
        "max_test_rows": 0,
        "max_length": 192,
        "group_by_length": True,
    },
}
SHARED = {"method": "lora", "layers": "query,value", "learning_rate": 1e-3}
Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """What is trained. changes: of the options, by task."""

    tasks: Sequence[str] = tuple(OWN)
    ranks: tuple[int, int] = (8, 64)
    seeds: Sequence[int] = (0, 1)
    amplified: int = 4
    changes: Mapping[str, Mapping[str, Any]] | None = None


class Run(NamedTuple):
    """A run that is trained: its adapter, the one that it started from, and its score on the development rows."""

    r: int
    seed: int
    adapter: lora.Adapter
    starting: lora.Adapter
    score: float

    @property
    def title(self) -> str:
        """What learned.csv calls it."""
        return f"r {self.r}, seed {self.seed}"


# --- runs ------------------------------------------------------------------------------------------------------------


def options(data: Path, task: str, r: int, seed: int, budget: Budget) -> TrainOptions:
    """The options of one run."""
    folder = data if task == "e2e" else data / "glue"
    own = {**OWN[task], **(budget.changes or {}).get(task, {})}
    return TrainOptions.of({"task": task, "data_dir": str(folder), **SHARED, **own, "r": r, "seed": seed})


def before_training(chosen: TrainOptions) -> tuple[lora.Adapter, nn.Module]:
    """The adapter that a run starts from, and the base model: what `loralib train` makes of the options."""
    kind = implementation(chosen)
    data = kind.read_rows(chosen)
    transformers.set_seed(chosen.seed)
    model = kind.plan(chosen, data).model
    starting = lora.extract(model)
    lora.eject(model)
    return starting, model


def trained(data: Path, folder: Path, task: str, budget: Budget) -> tuple[list[Run], nn.Module]:
    """The runs of a task, and its base model."""
    runs = []
    for seed in budget.seeds:
        for r in budget.ranks:
            chosen, place = options(data, task, r, seed, budget), folder / task / f"r-{r}-seed-{seed}"
            found = comparison.train_apart(chosen, place, resume=True, keep_weights=False)
            starting, base = before_training(chosen)
            runs.append(Run(r, seed, lora.load(place / run_folder.ADAPTER), starting, found["value"]))
    return runs, base


# --- figures ---------------------------------------------------------------------------------------------------------


def figure(finding: str, layer: str, i: float, j: float | None, value: float, chance: float | None, **more: Any) -> Row:
    """A row of learned.csv but for its task."""
    place = {"layer": layer, "depth": depth_of(layer), "matrix": last_name(layer)[0]}
    return {"finding": finding, "run": "", "other": "", "of": "", **place, "i": i, "j": j, "value": value} | {
        "chance": chance, "starting": None, **more,
    }  # fmt: skip


def at(budget: Budget) -> list[tuple[int, int]]:
    """The numbers of directions at which similarities are recorded."""
    small, large = budget.ranks
    return [(1, 1), (1, small), (small, small), (small, large), (large, large)]


def similarities(finding: str, a: Run, b: Run, of: Directions, budget: Budget) -> Iterator[Row]:
    """φ of two runs, layer by layer."""
    found = lora.subspace_similarity(a.adapter, b.adapter, of, starting=(a.starting, b.starting))
    for layer, similarity in found.items():
        rows, columns = similarity.phi.shape
        for i, j in at(budget):
            if i <= rows and j <= columns:
                yield figure(
                    finding, layer, i, j, similarity.at(i, j), float(similarity.chance[i - 1, j - 1]),
                    run=a.title, other=b.title, of=of, starting=_before(similarity, i, j),
                )  # fmt: skip


def _before(similarity: SubspaceSimilarity, i: int, j: int) -> float | None:
    value = math.nan if similarity.starting is None else float(similarity.starting[i - 1, j - 1])
    return None if math.isnan(value) else value


def amplified(run: Run, base: nn.Module, budget: Budget) -> Iterator[Row]:
    """Table 7 of a run, layer by layer, at the paper's r and at the run's own; and its overlap with W's leading directions."""
    for r in dict.fromkeys((min(budget.amplified, run.r), run.r)):
        for layer, found in lora.amplification(run.adapter, base, r).items():
            random = found.by_random / found.weight_norm
            values = {
                "amplification": (found.factor, found.update_norm / found.by_random if found.r else None),
                "in ΔW's directions": (found.by_update / found.weight_norm, random),
                "in W's directions": (found.by_weight / found.weight_norm, random),
            }
            for finding, (value, chance) in values.items():
                yield figure(finding, layer, r, None, value, chance, run=run.title)
            for share, value in found.overlap.items() if r == run.r else ():
                yield figure("overlap", layer, share, None, value, found.chance[share], run=run.title)


def figures_of(runs: Sequence[Run], base: nn.Module, budget: Budget) -> list[Row]:
    """All figures of a task."""
    small, large = ([run for run in runs if run.r == r] for r in budget.ranks)
    rows: list[Row] = []
    for a in small:
        for b in large:
            if a.seed != b.seed:
                rows += [row for of in ("A", "right") for row in similarities(RANKS, a, b, of, budget)]
    for a, b in (small, large):
        rows += [row for of in ("right", "left") for row in similarities(SEEDS, a, b, of, budget)]
    for run in runs:
        rows += amplified(run, base, budget)
    return rows


# --- answers ---------------------------------------------------------------------------------------------------------


def mean(rows: Iterable[Row], column: str = "value", **conditions: Any) -> float:
    """The mean of a column over the rows whose columns have these values."""
    chosen = [row[column] for row in rows if all(row[name] == value for name, value in conditions.items())]
    return statistics.fmean(value for value in chosen if value is not None and math.isfinite(value))


def over_chance(rows: Sequence[Row], **conditions: Any) -> float:
    """The mean over that of chance."""
    return mean(rows, **conditions) / mean(rows, "chance", **conditions)


def answers(rows: Sequence[Row], budget: Budget) -> list[Row]:
    """The paper's findings for one task, each with the two figures whose order decides."""
    ranks: dict[str, Any] = {"finding": RANKS, "of": "right"}
    small, large = budget.ranks
    seeds: dict[str, Any] = {"finding": SEEDS, "of": "right", "run": f"r {large}, seed {budget.seeds[0]}"}
    q, v = (over_chance(rows, **seeds, i=small, j=small, matrix=matrix) for matrix in "qv")
    own = [row for row in rows if row["run"] in [f"r {large}, seed {seed}" for seed in budget.seeds]]
    few, many = (mean(own, finding="amplification", i=r) for r in (min(budget.amplified, large), large))
    inside, random = (mean(own, column, finding="in ΔW's directions", i=large) for column in ("value", "chance"))
    weight, top = mean(own, finding="in W's directions", i=large), over_chance(own, finding="overlap", i=0.1)
    first, both = over_chance(rows, **ranks, i=1, j=small), f"φ({small}, {small}) / chance"
    one, several = (over_chance(rows, **seeds, i=i, j=i) for i in (1, small))
    alike = mean([{**row, "value": row["value"] > 0.5} for row in rows], **ranks, i=1, j=1)
    found = [
        ("the two first directions are alike in most layers", alike, 0.5, "share of layers with φ(1, 1) > 0.5; half"),
        ("two ranks share their first direction", first, 2.0, f"φ(1, {small}) / chance; twice chance"),
        ("they share it more than the others", first, over_chance(rows, **ranks, i=small, j=large), "the same; of all"),
        ("two seeds share less, the lower the direction", one, several, f"φ(1, 1) / chance; {both}"),
        ("query's ΔW shares more between seeds than value's", q, v, f"{both}: query; value"),
        ("ΔW amplifies directions that are in W", inside, random, "‖UᵀWV‖ / ‖W‖ with directions of ΔW; random ones"),
        ("which W does not emphasise", weight, 2 * inside, "‖UᵀWV‖ / ‖W‖ with directions of W; twice that of ΔW"),
        ("the first ones more than the others", few, many, f"factor with {budget.amplified} directions; with {large}"),
        ("little of ΔW is in W's leading tenth", 2.0, top, "twice chance; share of ‖ΔW‖² / chance"),
    ]
    names = ("finding", "figure", "against", "what")
    return [{**dict(zip(names, each, strict=True)), "answer": decided(each[1], each[2])} for each in found]


def decided(figure: float, against: float) -> str:
    """Whether a figure is larger than another; those within a tenth of each other decide nothing."""
    if abs(figure - against) <= 0.1 * max(abs(figure), abs(against)):
        return "undecided"
    return "yes" if figure > against else "no"


# --- all of it -------------------------------------------------------------------------------------------------------


def measure(data: Path, folder: Path, budget: Budget, console: Console) -> tuple[list[Row], list[Row]]:
    """The rows of learned.csv and of learned_answers.csv."""
    found: list[Row] = []
    answered: list[Row] = []
    for task in budget.tasks:
        runs, base = trained(data, folder, task, budget)
        console.print(f"{task}: {', '.join(f'{run.title}: {run.score:.4f}' for run in runs)}", highlight=False)
        rows = figures_of(runs, base, budget)
        found += [{"task": task, **row} for row in rows]
        answered += [{"task": task, **row} for row in answers(rows, budget)]
    return found, answered


def table(answered: Sequence[Row]) -> Table:
    """A line a finding, a task after the other."""
    made = Table(title="What LoRA learned")
    for heading in ("task", "finding", "", "figure", "against", "what"):
        made.add_column(heading, justify="right" if heading in ("figure", "against") else "left")
    for row in answered:
        figures = [f"{row[name]:.3g}" for name in ("figure", "against")]
        made.add_row(row["task"], row["finding"], row["answer"], *figures, row["what"])
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(OWN), default=tuple(OWN), help="default: all")
    tasks = parser.parse_args().tasks
    data = os.environ.get("LORALIB_DATA")
    if not data:
        print("set LORALIB_DATA to the folder that holds glue/ and e2e/", file=sys.stderr)
        return 2
    origin, console = provenance(), Console()
    transformers.utils.logging.disable_progress_bar()
    try:
        rows, answered = measure(Path(data), RUNS, Budget(tasks=tasks), console)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; what is finished is kept. Go on with the same command.") from None
    console.print(table(answered))
    name = "learned" if tuple(tasks) == tuple(OWN) else f"learned_{'_'.join(tasks)}"
    wrote = [write_rows(name, rounded(rows), origin), write_rows(f"{name}_answers", rounded(answered), origin)]
    console.print(f"Wrote {' and '.join(map(str, wrote))}.", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
