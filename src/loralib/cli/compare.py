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
from ..recipes.options import TrainOptions
from ..recipes.resolved import resolved
from ..recipes.run_folder import as_yaml, has_begun, holding_runs
from ..recipes.search_space import Space
from ..recipes.task import CLASSIFICATION, METHODS, Method
from .dataclass_parsing import OptionsParser, dataclass_parser, given
from .offline import check_local, hub_names, offline_if_unreachable
from .terminal import reporting, say_loading

DESCRIPTION = """Train the same model on the same rows by LoRA, on its last layers and in full, and write what came out: a
table, a plot, and LoRA's options, ready for loralib train --config. With --search, LoRA's rank, alpha, layers, head and
learning rate are first looked for by successive halving, on a held-out share of the training rows."""

TABLE, PLOT, BEST, TRIALS, SEARCH = "comparison.csv", "comparison.png", "best.yaml", "search.csv", "search"
_ROOTS = "|".join([*METHODS, SEARCH])
WRITER = holding_runs("comparison", "|".join(map(re.escape, (TABLE, PLOT, BEST, TRIALS))), _ROOTS, done=TABLE)


def run(words: Sequence[str]) -> int:
    """Compare; returns the exit code."""
    made, own = _with_own()
    values = given(made, words)
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
    """A block that writes to `folder`: what it leaves there when it fails is what can be gone on with."""
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
    """The parser, and the defaults of the words that only this command knows."""
    made = dataclass_parser(TrainOptions, "loralib compare", DESCRIPTION, without=("method", "learning_rate", "save_merged"))
    return made, _add_own(made)


def _add_own(parser: Any) -> dict[str, Any]:
    """Add the words that only this command knows; their defaults by name."""
    usual_space = Space()
    space = {field.name: list(getattr(usual_space, field.name)) for field in fields(Space)}
    what = parser.add_argument_group("comparison")
    what.add_argument("--methods", default=",".join(METHODS), help=f"methods to compare (default: {','.join(METHODS)})")
    for method in METHODS:
        help_ = f"peak learning rate of {method} (default: {CLASSIFICATION.learning_rates[method]:g})"
        what.add_argument(f"--learning-rate-{method}", type=float, help=help_)
    what.add_argument("--seeds", type=int, default=1, help="train each with so many seeds (default: 1)")
    what.add_argument("--overwrite", action="store_true", help="replace the comparison that is in the output folder")
    what.add_argument("--json", action="store_true", help="print the table as JSON, and the rest to standard error")
    what.add_argument("--resume", action="store_true", help="keep what is finished in the output folder and go on")
    look = parser.add_argument_group("search")
    look.add_argument("--search", type=int, default=0, help="try so many LoRA configurations first (default: 0, none)")
    look.add_argument("--eta", type=int, default=3, help="keep one in so many, on so many times the rows (default: 3)")
    for name, kind in {"r": int, "alpha": float, "layers": str, "train_head": str, "learning_rate": float}.items():
        usual = f"(default: {' '.join(map(str, space[name]))})"
        help_ = {"alpha": "multiples of the rank for lora_alpha", "layers": "sets of roles"}.get(name, f"values of {name}")
        look.add_argument(
            f"--search-{name.replace('_', '-')}", nargs="+", type=kind, default=space[name], help=f"{help_} {usual}"
        )
    names = [
        "methods",
        *map(_rate, METHODS),
        "seeds",
        "overwrite",
        "resume",
        "json",
        "search",
        "eta",
        *(f"search_{n}" for n in space),
    ]
    defaults = parser.get_defaults()
    return {name: defaults[name] for name in names}


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
