"""What the parsers of all commands share."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfigError
from . import help
from .terminal import shown
from .wording import in_our_words, known_options

_NEGATIVE_NUMBER = re.compile(r"-((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)$", re.IGNORECASE)


def to_path(text: str) -> Path:
    """A path from a word; an empty word is none, although `Path("")` is the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the value is empty; leave it out, or set the variable that it comes from")
    return Path(text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """The positional argument RUN."""
    parser.add_argument("run", type=to_path, metavar="RUN", help="run folder that loralib train wrote")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The option that lets a model's own code run."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")


class CommandParser(argparse.ArgumentParser):
    """A parser with a readable help, for which `-1e-3` is a number.

    usage: without the program's name. examples: command lines at the end of the help. common: options that `--help` shows,
    where there are too many for one page; `--help-all` shows all.
    """

    def __init__(self, *, usage: str | None = None, examples: Sequence[str] = (), common: Sequence[str] = (), **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=help.Formatter, **kwargs)
        self.usage = usage and f"{self.prog} {usage}"
        self.examples, self.common = examples, common
        self._negative_number_matcher = _NEGATIVE_NUMBER
        if common:
            self.add_argument(help.EVERYTHING, action=help.Everything, help="show all options, by section, and exit")

    def format_help(self, *_: Any) -> str:
        """What `--help` prints."""
        return help.short(self, self.common, self.examples) if self.common else help.full(self, self.examples)

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(shown(message), file)


class OneSentenceParser(CommandParser):
    """A parser whose complaints are one sentence: a `ConfigError`."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the words."""
        problem = in_our_words(message, self.prog, known_options(self._actions))
        raise ConfigError(f"{problem}; see {self.prog} --help.")
