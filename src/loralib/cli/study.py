"""`loralib study`: the LoRA paper's questions on a task and a model of your own: which matrices, which rank, how many rows."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..recipes.detection import with_problem
from ..recipes.options import TrainOptions
from ..recipes.run_folder import holding_runs
from ..recipes.studies import (
    BUDGET_OF,
    BUDGET_RANK,
    CHOSEN,
    LEAST_STEPS,
    MATRICES,
    PAGE,
    PLOTS,
    RANKS,
    ROWS,
    RULES,
    RUNS,
    STUDIES,
    TABLE,
    Cell,
    Study,
    of_matrices,
    of_ranks,
    of_rows,
    read_set,
)
from ..recipes.task import COMPARED, METHODS, Method
from . import grids
from .dataclass_parsing import OptionsParser, dataclass_parser, given
from .offline import check_local, hub_names, offline_if_unreachable
from .progress import Progress
from .terminal import reporting, say_loading

DESCRIPTION = f"""Answer a question of the LoRA paper's section 7 on your model and data, by a grid of runs with several seeds:

  matrices  which matrices to adapt with one budget of parameters (Table 5):
            that of rank --r (default: {BUDGET_RANK}) on query and value, spent on each
            of --sets by its rank
  rank      which rank to choose (Tables 6 and 18): --ranks on each of --sets,
            with one lora_alpha for all ranks, and updates scaled by
            lora_alpha / r (paper) and by lora_alpha / sqrt(r) (rslora)
  rows      how many rows suffice (Table 16): --rows and all of them, by each
            of --methods

Writes a table, a figure and a page, with what the adapters learned, and says which differences are within the spread of the
seeds. The runs stay in the output folder, without checkpoints and whole models."""
EXAMPLES = (
    "loralib study matrices --model roberta-base --task mrpc -o runs/matrices",
    "loralib study rank --model roberta-base --task mrpc --ranks 1 8 --sets q,v all",
    "loralib study rows --model roberta-base --data train.tsv --methods lora,full",
)
COMMON = (
    *("--model", "--data", "--task", "--eval-data", "--test-data", "--output", "--seeds", "--sets", "--r", "--ranks", "--rows"),
    *("--methods", "--num-train-epochs", "--batch-size", "--max-train-rows", "--resume", "--config"),
)
OWN: Mapping[str, tuple[Study, ...]] = {  # the studies that have an option
    "sets": ("matrices", "rank"),
    "ranks": ("rank",),
    "rules": ("rank",),
    "rows": ("rows",),
    "methods": ("rows",),
    "min_steps": ("rows",),
}
WRITER = holding_runs("study", "|".join(map(re.escape, (TABLE, PAGE, *PLOTS))), RUNS, done=TABLE)


def run(words: Sequence[str]) -> int:
    """Study; returns the exit code."""
    made, own = _with_own()
    values = with_problem(given(made, words))
    chosen = {name: values.pop(name, default) for name, default in own.items()}
    study: Study = chosen["study"]
    options, methods = _checked(study, values, chosen)
    folder = Path(values.pop("output", None) or f"runs/{options.data_name}-study-{study}")
    check_local(options)
    with WRITER.alone_in(folder), reporting(chosen["json"]) as report:
        say_loading(str(options.model))
        with (
            grids.kept(WRITER, folder, chosen["overwrite"], chosen["resume"]),
            offline_if_unreachable(*hub_names(options)),
        ):
            cells = _cells(study, options, chosen, methods)
            found = _train(study, options, values, chosen, folder, cells)
            report.update({"folder": str(folder), "study": study, **found})
    return 0


def parser() -> OptionsParser:
    """The parser of this command."""
    return _with_own()[0]


def _with_own() -> tuple[OptionsParser, dict[str, Any]]:
    """The parser, and the defaults of the options that only this command has."""
    made = dataclass_parser(
        TrainOptions,
        "loralib study",
        without=("method", "learning_rate", "save_merged"),
        other_help={
            "output": "folder to write (default: runs/<data>-study-<study>)",
            "r": f"LoRA rank; of matrices the one of the budget (default: 8; matrices: {BUDGET_RANK})",
        },
        usage="STUDY --model NAME (--data FILE | --task NAME) [options]",
        description=DESCRIPTION,
        examples=EXAMPLES,
        common=COMMON,
    )
    before = {action.dest for action in made._actions}
    made.add_argument("study", choices=STUDIES, metavar="STUDY", help=f"{', '.join(STUDIES)}")
    _add_study(made.section("study"))
    grids.add_running(made.section("run"), "study")
    return made, grids.own_defaults(made, before)


def _add_study(group: Any) -> None:
    sets = "sets of matrices by role: q,v (query and value), mlp, all (matrices: nine sets; rank: q,v)"
    group.add_argument("--sets", nargs="+", metavar="SET", help=sets)
    group.add_argument("--ranks", nargs="+", type=int, metavar="N", help=f"rank: ranks ({' '.join(map(str, RANKS))})")
    rules = "rank: scalings, of paper (lora_alpha / r) and rslora (lora_alpha / sqrt(r)) (both)"
    group.add_argument("--rules", nargs="+", metavar="RULE", help=rules)
    counts = f"rows: numbers of training rows, besides all ({' '.join(map(str, ROWS))})"
    group.add_argument("--rows", nargs="+", type=int, metavar="N", help=counts)
    others = " and ".join(method for method in METHODS if method not in COMPARED)
    methods = f"rows: methods, also {others} ({','.join(COMPARED)})"
    group.add_argument("--methods", metavar="LIST", help=methods)
    grids.add_rates(group)
    steps = f"rows: train for more epochs where there would be fewer steps ({LEAST_STEPS})"
    group.add_argument("--min-steps", type=int, metavar="N", help=steps)
    group.add_argument("--seeds", type=int, default=3, metavar="N", help="train each cell with N seeds (default: 3)")


def _checked(study: Study, values: dict[str, Any], chosen: dict[str, Any]) -> tuple[TrainOptions, list[Method]]:
    """The options of the LoRA runs, and the methods; `ConfigError` for what cannot work. Fills in what was not given."""
    grids.check_running(chosen)
    for name, studies in OWN.items():
        if chosen[name] is not None and study not in studies:
            raise ConfigError(f"--{name.replace('_', '-')} belongs to loralib study {' and '.join(studies)}; leave it out.")
    for name in CHOSEN[study]:
        if name in values:
            instead = "--ranks" if name == "r" else "--rules" if name == "use_rslora" else "--sets"
            raise ConfigError(
                f"--{name.replace('_', '-')} is chosen by loralib study {study}; leave it out, or give {instead}."
            )
    methods, rates = grids.read_methods(chosen["methods"] or ",".join(COMPARED)), grids.rates_of(chosen)
    methods = methods if study == "rows" else ["lora"]
    for method in rates:
        if method not in methods:
            raise ConfigError(f"--learning-rate-{method} has no effect with the methods {','.join(methods)}; leave it out.")
    chosen["min_steps"] = LEAST_STEPS if chosen["min_steps"] is None else chosen["min_steps"]
    if chosen["min_steps"] < 0:
        raise ConfigError(f"--min-steps {chosen['min_steps']}: must not be negative.")
    for name in ("ranks", "rows"):
        if unfit := [n for n in chosen[name] or () if n < 1]:
            raise ConfigError(f"--{name} {unfit[0]}: must be positive.")
    if unknown := [rule for rule in chosen["rules"] or () if rule not in RULES]:
        raise ConfigError(f"--rules {unknown[0]}: give some of {', '.join(RULES)}.")
    usual = MATRICES if study == "matrices" else (BUDGET_OF,)
    chosen["sets"] = list(dict.fromkeys(map(read_set, chosen["sets"] or usual)))
    own = {"learning_rate": rates.get("lora")} | ({"r": BUDGET_RANK} if study == "matrices" and "r" not in values else {})
    options = TrainOptions.of({**grids.of_lora(values, methods), **own})
    return options.with_absolute_paths(), methods


def _cells(study: Study, options: TrainOptions, chosen: Mapping[str, Any], methods: Sequence[Method]) -> list[Cell]:
    """The cells of the study."""
    if study == "matrices":
        from ..recipes import budget

        return of_matrices(budget.ranks_for(options, chosen["sets"], options.lora.r))
    if study == "rank":
        return of_ranks(chosen["sets"], sorted(set(chosen["ranks"] or RANKS)), list(dict.fromkeys(chosen["rules"] or RULES)))

    from ..recipes.plan import implementation
    from ..recipes.study import check_methods

    check_methods(options, methods)
    available = len(implementation(options).read_rows(options)[0])
    return of_rows(methods, chosen["rows"] or ROWS, options, available, chosen["min_steps"])


def _train(
    study: Study,
    options: TrainOptions,
    values: Mapping[str, Any],
    chosen: Mapping[str, Any],
    folder: Path,
    cells: Sequence[Cell],
) -> dict[str, Any]:
    """Train all cells with all seeds; print the table and what it shows, write them, and return all of it for JSON."""
    from rich.console import Console

    from ..recipes import comparison, study_page, study_report
    from ..recipes.study import train_study
    from ..train.rich_text import say

    console, shared = Console(), grids.shared(options, values)
    own = {method: {"learning_rate": rate} for method, rate in grids.rates_of(chosen).items()}
    seeds = range(options.seed, options.seed + chosen["seeds"])

    def on_progress(number: int, count: int, run: Path) -> None:
        say(console, f"run {number} of {count}: {run}")

    train = comparison.apart(chosen["resume"], keep_weights=False)
    lines = train_study(cells, shared, own, folder / RUNS, seeds, train, on_progress)

    rows, said = study_report.rows(study, lines), study_report.findings(study, lines)
    title = f"{study}: {options.data_name}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    console.print(study_report.table(lines, title))
    say(console, *said)
    study_report.plot(folder, study, lines, title)
    with Progress("Analyzing") as progress:
        study_page.write(folder, study, lines, title, str(options.model), progress.at)
    grids.write_csv(folder / TABLE, rows)
    say(console, f"Wrote {folder / PAGE} and, next to it, {', '.join((TABLE, *PLOTS))}.")
    return {"findings": said, "runs": rows}
