"""Shared by the parsers of all commands."""

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
    """A path from an argument. Refuses an empty one, which `Path` takes for the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the value is empty; leave it out, or set the variable that it comes from")
    return Path(text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument RUN."""
    parser.add_argument("run", type=to_path, metavar="RUN", help="run folder that loralib train wrote")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option that allows Python code of the model."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")


class CommandParser(argparse.ArgumentParser):
    """A parser with a short usage line and examples, which reads `-1e-3` as a number.

    usage: without the program's name. examples: command lines at the end of the help. common: options that `--help` shows if
    there are too many for one page; `--help-all` shows all of them.
    """

    def __init__(self, *, usage: str | None = None, examples: Sequence[str] = (), common: Sequence[str] = (), **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=help.Formatter, **kwargs)
        self.usage = usage and f"{self.prog} {usage}"
        self.examples, self.common = examples, common
        self._negative_number_matcher = _NEGATIVE_NUMBER
        if common:
            self.add_argument(help.EVERYTHING, action=help.Everything, help="show all options, by section, and exit")

    @property
    def all_help(self) -> str:
        """The command line that shows all options."""
        return f"{self.prog} {help.EVERYTHING if self.common else '--help'}"

    def format_help(self, *_: Any) -> str:
        """What `--help` prints."""
        return help.short(self, self.common, self.examples) if self.common else help.full(self, self.examples)

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(shown(message), file)


class OneSentenceParser(CommandParser):
    """A parser that raises `ConfigError`, in one sentence, for arguments that it does not accept."""

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        problem = in_our_words(message, self.prog, known_options(self._actions))
        raise ConfigError(f"{problem}; see {self.all_help}.")
