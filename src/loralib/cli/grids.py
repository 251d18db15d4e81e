"""What the commands that train many runs share: options, the folder, tables as CSV files."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..recipes.options import IDLE, TrainOptions
from ..recipes.run_folder import has_begun
from ..recipes.task import CLASSIFICATION, METHODS, Method
from ..storage.folders import Writer
from .dataclass_parsing import OptionsParser


def add_rates(group: Any) -> None:
    """Add an option for the peak learning rate of each method."""
    for method in METHODS:
        help_ = f"peak learning rate of {method} (default: {CLASSIFICATION.learning_rates[method]:g})"
        group.add_argument(f"--learning-rate-{method}", type=float, metavar="RATE", help=help_)


def rates_of(chosen: Mapping[str, Any]) -> dict[Method, float]:
    """The learning rates that were given, by method."""
    given = {method: chosen[f"learning_rate_{method.replace('-', '_')}"] for method in METHODS}
    return {method: rate for method, rate in given.items() if rate is not None}


def add_running(group: Any, what: str) -> None:
    """Add the options of going on, replacing and printing. what: what is in the output folder."""
    group.add_argument("--resume", action="store_true", help="keep the finished runs in the output folder, and continue")
    group.add_argument("--overwrite", action="store_true", help=f"replace the {what} in the output folder")
    group.add_argument("--json", action="store_true", help="print the table as JSON, and the rest to standard error")


def own_defaults(parser: OptionsParser, before: set[str]) -> dict[str, Any]:
    """The defaults of the options of `parser` that are not among those `before`."""
    defaults = parser.get_defaults()
    return {action.dest: defaults[action.dest] for action in parser._actions if action.dest not in before}


def check_running(chosen: Mapping[str, Any]) -> None:
    """`ConfigError` for contradictions among the options that all grids have."""
    if chosen["overwrite"] and chosen["resume"]:
        raise ConfigError("--overwrite and --resume contradict each other; give one of them.")
    if chosen["seeds"] < 1:
        raise ConfigError(f"--seeds {chosen['seeds']}: must be positive.")


def read_methods(joined: str) -> list[Method]:
    """The methods of a list that is joined by commas; `ConfigError` for an unknown one, and for one that is there twice."""
    words = [word.strip() for word in joined.split(",") if word.strip()]
    methods = [method for word in words for method in METHODS if word == method]
    if not words or len(methods) < len(words) or len(set(words)) < len(words):
        raise ConfigError(f"--methods {joined}: give some of {','.join(METHODS)}, each once.")
    return methods


def of_lora(values: Mapping[str, Any], methods: Sequence[Method]) -> dict[str, Any]:
    """Those of the given options that LoRA's run takes. Raises `ConfigError` for one that acts with none of the methods."""
    others = [name for name in IDLE["lora"] if name in values]
    for name in others:
        if all(name in IDLE[method] for method in methods):
            raise ConfigError(f"--{name.replace('_', '-')} has no effect with method={', '.join(methods)}; leave it out.")
    return {name: value for name, value in values.items() if name not in others}


def shared(options: TrainOptions, values: Mapping[str, Any]) -> dict[str, Any]:
    """The given `values` for all methods: as `options` have them, which are LoRA's, and those that LoRA does not take."""
    flat, others = options.flat(), IDLE["lora"]
    return {name: value if name in others else flat[name] for name, value in values.items() if name != "output"}


@contextmanager
def kept(writer: Writer, folder: Path, overwrite: bool, resume: bool) -> Iterator[None]:
    """Context manager for writing to `folder`: after a failure, only runs that can be resumed stay there."""
    writer.check_free(folder, overwrite, resume)
    if not resume:
        writer.begin(folder)
    try:
        yield
    except BaseException as error:
        if not has_begun(folder):
            writer.give_up(folder)
        if not isinstance(error, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt("interrupted; finished runs are kept. Go on with the same words and --resume.") from None
    writer.finish(folder)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that have the same columns."""
    from ..storage.atomic import write_atomically

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
