"""`loralib compare`: LoRA, last layers and full fine-tuning side by side, after a search for LoRA's hyper-parameters."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..recipes.detection import with_problem
from ..recipes.options import TrainOptions
from ..recipes.resolved import resolved
from ..recipes.run_folder import as_yaml, holding_runs
from ..recipes.search_space import Space
from ..recipes.task import COMPARED, METHODS, Method
from . import grids
from .dataclass_parsing import OptionsParser, dataclass_parser, given
from .offline import check_local, hub_names, offline_if_unreachable
from .terminal import reporting, say_loading

DESCRIPTION = """Fine-tune the same model on the same rows with LoRA, on its last layers and in full, and where asked for by
BitFit and prefix tuning. Writes a table, a plot, and LoRA's options for loralib train --config. With --search, first looks for
LoRA's rank, alpha, layers, head and learning rate by successive halving, on a held-out part of the training rows."""
EXAMPLES = (
    "loralib compare --model roberta-base --data train.tsv --test-data test.tsv",
    "loralib compare --model roberta-base --task mrpc --methods lora,full --seeds 3",
    "loralib compare --model roberta-base --data train.tsv --search 9",
)
COMMON = (
    *("--model", "--data", "--task", "--eval-data", "--test-data", "--output", "--methods", "--seeds", "--search"),
    *("--num-train-epochs", "--batch-size", "--max-train-rows", "--resume", "--config"),
)

TABLE, PLOT, BEST, TRIALS, SEARCH = "comparison.csv", "comparison.png", "best.yaml", "search.csv", "search"
_ROOTS = "|".join([*METHODS, SEARCH])
WRITER = holding_runs("comparison", "|".join(map(re.escape, (TABLE, PLOT, BEST, TRIALS))), _ROOTS, done=TABLE)


def run(words: Sequence[str]) -> int:
    """Compare; returns the exit code."""
    made, own = _with_own()
    values = with_problem(given(made, words))
    chosen = {name: values.pop(name, default) for name, default in own.items()}
    options, methods, rates = _checked(values, chosen)
    folder = Path(values.pop("output", None) or f"runs/{options.data_name}-compare")
    check_local(options)
    with WRITER.alone_in(folder), reporting(chosen["json"]) as report:
        say_loading(str(options.model))
        with (
            grids.kept(WRITER, folder, chosen["overwrite"], chosen["resume"]),
            offline_if_unreachable(*hub_names(options)),
        ):
            rows = _compare(options, values, chosen, folder, methods, rates)
        report.update({"folder": str(folder), "runs": rows})
    return 0


def parser() -> OptionsParser:
    """The parser of this command."""
    return _with_own()[0]


def _with_own() -> tuple[OptionsParser, dict[str, Any]]:
    """The parser, and the defaults of the options that only this command has."""
    made = dataclass_parser(
        TrainOptions,
        "loralib compare",
        without=("method", "learning_rate", "save_merged"),
        other_help={"output": "folder to write (default: runs/<data>-compare)"},
        usage="--model NAME (--data FILE | --task NAME) [options]",
        description=DESCRIPTION,
        examples=EXAMPLES,
        common=COMMON,
    )
    before = {action.dest for action in made._actions}
    _add_comparison(made.section("comparison"))
    grids.add_running(made.section("run"), "comparison")
    _add_search(made.section("search"))
    return made, grids.own_defaults(made, before)


def _add_comparison(group: Any) -> None:
    usual = ",".join(COMPARED)
    others = " and ".join(method for method in METHODS if method not in COMPARED)
    help_ = f"methods to compare, also {others} (default: {usual})"
    group.add_argument("--methods", default=usual, metavar="LIST", help=help_)
    grids.add_rates(group)
    group.add_argument("--seeds", type=int, default=1, metavar="N", help="train each method with N seeds (default: 1)")


def _add_search(group: Any) -> None:
    group.add_argument("--search", type=int, default=0, metavar="N", help="try N configurations of LoRA first (default: 0)")
    group.add_argument(
        "--eta", type=int, default=3, metavar="N", help="keep 1 of N, and train it on N times the rows (default: 3)"
    )
    described = {
        "r": (int, "N", "ranks to try"),
        "alpha": (float, "X", "values of lora_alpha to try, as multiples of the rank"),
        "layers": (str, "ROLES", "sets of layers to try, by role"),
        "train_head": (str, "PART", "values of --train-head to try"),
        "learning_rate": (float, "RATE", "peak learning rates to try"),
    }
    for name, (kind, metavar, what) in described.items():
        usual = list(getattr(Space(), name))
        shown = ", ".join(map(str, usual)) if name != "layers" else f"{len(usual)} sets"
        help_ = f"{what} (default: {shown})"
        group.add_argument(
            f"--search-{name.replace('_', '-')}", nargs="+", type=kind, default=usual, metavar=metavar, help=help_
        )


def _checked(values: Mapping[str, Any], chosen: dict[str, Any]) -> tuple[TrainOptions, list[Method], dict[Method, float]]:
    """The options of the LoRA run, the methods, and their learning rates; `ConfigError` for what cannot work."""
    grids.check_running(chosen)
    methods, rates = grids.read_methods(chosen["methods"]), grids.rates_of(chosen)
    values = grids.of_lora(values, methods)
    if chosen["search"] and "train_head" not in TrainOptions.of(values).task_kind.options:
        chosen["search_train_head"] = ["all"]
    if chosen["search"] and "lora" not in methods:
        raise ConfigError("--search looks for LoRA's options, and lora is not among --methods; add it.")
    return TrainOptions.of({**values, "learning_rate": rates.get("lora")}).with_absolute_paths(), methods, rates


def _compare(
    options: TrainOptions,
    values: Mapping[str, Any],
    chosen: Mapping[str, Any],
    folder: Path,
    methods: Sequence[Method],
    rates: dict[Method, float],
) -> list[dict[str, Any]]:
    from rich.console import Console

    from ..recipes import comparison, comparison_report, search
    from ..storage.atomic import write_atomically
    from ..train.rich_text import say

    console = Console()
    own: dict[Method, dict[str, Any]] = {method: {"learning_rate": rate} for method, rate in rates.items()}
    shared = grids.shared(options, values)
    if chosen["search"]:
        space = Space(**{field.name: tuple(chosen[f"search_{field.name}"]) for field in fields(Space)})
        how = {"n": chosen["search"], "eta": chosen["eta"], "resume": chosen["resume"]}
        trials = search.search(
            options, space, folder / SEARCH, **how, on_progress=lambda trial: comparison_report.tell_trial(console, trial)
        )
        console.print(comparison_report.search_table(trials, options.metric))
        grids.write_csv(folder / TRIALS, [trial.to_dict() for trial in trials])
        own["lora"] = dict(trials[0].values)
    seeds = range(options.seed, options.seed + chosen["seeds"]) if chosen["seeds"] > 1 else None
    outcomes = comparison.compare(shared, own, folder, methods, seeds, chosen["resume"])
    rows = comparison_report.comparison_rows(outcomes)
    title = f"{options.data_name}, {rows[0]['train_rows']:,} rows, {options.num_train_epochs:g} epochs"
    console.print(comparison_report.comparison_table(outcomes, title))
    grids.write_csv(folder / TABLE, rows)
    comparison_report.comparison_plot(folder / PLOT, outcomes, title)
    wrote = [TABLE, PLOT, *([TRIALS] if chosen["search"] else [])]
    if "lora" in methods:
        write_atomically(folder / BEST, as_yaml(resolved(TrainOptions.of({**shared, **own.get("lora", {})}))))
        wrote.append(BEST)
        say(console, f"LoRA's options again: loralib train --config {folder / BEST}")
    say(console, f"Wrote {', '.join(str(folder / name) for name in wrote)}.")
    return rows
