"""`loralib compare`: LoRA, last layers and full fine-tuning side by side, after a search for LoRA's hyper-parameters."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..recipes.detection import with_problem
from ..recipes.options import TrainOptions
from ..recipes.resolved import resolved
from ..recipes.run_folder import as_yaml, has_begun, holding_runs
from ..recipes.search_space import Space
from ..recipes.task import CLASSIFICATION, METHODS, Method
from .dataclass_parsing import OptionsParser, dataclass_parser, given
from .offline import check_local, hub_names, offline_if_unreachable
from .terminal import reporting, say_loading

DESCRIPTION = """Fine-tune the same model on the same rows with LoRA, on its last layers and in full. Writes a table, a plot,
and LoRA's options for loralib train --config. With --search, first looks for LoRA's rank, alpha, layers, head and learning rate
by successive halving, on a held-out part of the training rows."""
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
        with _kept(folder, chosen["overwrite"], chosen["resume"]), offline_if_unreachable(*hub_names(options)):
            rows = _compare(options, values, chosen, folder, methods, rates)
        report.update({"folder": str(folder), "runs": rows})
    return 0


@contextmanager
def _kept(folder: Path, overwrite: bool, resume: bool) -> Iterator[None]:
    """Context manager for writing to `folder`: after a failure, only runs that can be resumed stay there."""
    WRITER.check_free(folder, overwrite, resume)
    if not resume:
        WRITER.begin(folder)
    try:
        yield
    except BaseException as error:
        if not has_begun(folder):
            WRITER.give_up(folder)
        if not isinstance(error, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt("interrupted; finished runs are kept. Go on with the same words and --resume.") from None
    WRITER.finish(folder)


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
    _add_comparison(made.section("comparison"), made.section("run"))
    _add_search(made.section("search"))
    defaults = made.get_defaults()
    return made, {action.dest: defaults[action.dest] for action in made._actions if action.dest not in before}


def _add_comparison(group: Any, running: Any) -> None:
    group.add_argument(
        "--methods", default=",".join(METHODS), metavar="LIST", help=f"methods to compare (default: {','.join(METHODS)})"
    )
    for method in METHODS:
        help_ = f"peak learning rate of {method} (default: {CLASSIFICATION.learning_rates[method]:g})"
        group.add_argument(f"--learning-rate-{method}", type=float, metavar="RATE", help=help_)
    group.add_argument("--seeds", type=int, default=1, metavar="N", help="train each method with N seeds (default: 1)")
    running.add_argument("--resume", action="store_true", help="keep the finished runs in the output folder, and continue")
    running.add_argument("--overwrite", action="store_true", help="replace the comparison in the output folder")
    running.add_argument("--json", action="store_true", help="print the table as JSON, and the rest to standard error")


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


def _rate(method: Method) -> str:
    return f"learning_rate_{method.replace('-', '_')}"


def _checked(values: Mapping[str, Any], chosen: dict[str, Any]) -> tuple[TrainOptions, list[Method], dict[Method, float]]:
    """The options of the LoRA run, the methods, and their learning rates; `ConfigError` for what cannot work."""
    if chosen["overwrite"] and chosen["resume"]:
        raise ConfigError("--overwrite and --resume contradict each other; give one of them.")
    if chosen["seeds"] < 1:
        raise ConfigError(f"--seeds {chosen['seeds']}: must be positive.")
    methods = [word.strip() for word in chosen["methods"].split(",") if word.strip()]
    if not methods or set(methods) - set(METHODS) or len(set(methods)) < len(methods):
        raise ConfigError(f"--methods {chosen['methods']}: give some of {','.join(METHODS)}, each once.")
    if chosen["search"] and "train_head" not in TrainOptions.of(values).task_kind.options:
        chosen["search_train_head"] = ["all"]
    if chosen["search"] and "lora" not in methods:
        raise ConfigError("--search looks for LoRA's options, and lora is not among --methods; add it.")
    rates = {m: rate for m in METHODS if (rate := chosen[_rate(m)]) is not None}
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
    shared = {name: value for name, value in options.flat().items() if name in values and name != "output"}
    if chosen["search"]:
        space = Space(**{field.name: tuple(chosen[f"search_{field.name}"]) for field in fields(Space)})
        how = {"n": chosen["search"], "eta": chosen["eta"], "resume": chosen["resume"]}
        trials = search.search(
            options, space, folder / SEARCH, **how, on_progress=lambda trial: comparison_report.tell_trial(console, trial)
        )
        console.print(comparison_report.search_table(trials, options.metric))
        _write_csv(folder / TRIALS, [trial.to_dict() for trial in trials])
        own["lora"] = dict(trials[0].values)
    seeds = range(options.seed, options.seed + chosen["seeds"]) if chosen["seeds"] > 1 else None
    outcomes = comparison.compare(shared, own, folder, methods, seeds, chosen["resume"])
    rows = comparison_report.comparison_rows(outcomes)
    title = f"{options.data_name}, {rows[0]['train_rows']:,} rows, {options.num_train_epochs:g} epochs"
    console.print(comparison_report.comparison_table(outcomes, title))
    _write_csv(folder / TABLE, rows)
    comparison_report.comparison_plot(folder / PLOT, outcomes, title)
    wrote = [TABLE, PLOT, *([TRIALS] if chosen["search"] else [])]
    if "lora" in methods:
        write_atomically(folder / BEST, as_yaml(resolved(TrainOptions.of({**shared, **own.get("lora", {})}))))
        wrote.append(BEST)
        say(console, f"LoRA's options again: loralib train --config {folder / BEST}")
    say(console, f"Wrote {', '.join(str(folder / name) for name in wrote)}.")
    return rows


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from ..storage.atomic import write_atomically

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
