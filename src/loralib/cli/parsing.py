"""What the parsers of all commands share."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfigError
from .terminal import shown
from .wording import in_our_words, known_options


def add_run(parser: argparse.ArgumentParser) -> None:
    """The positional argument RUN."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder that loralib train wrote")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The option that lets a model's own code run."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python code that comes with the model, where it needs some (default: refuse)",
    )


class OneSentenceParser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence: a `ConfigError`."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the words."""
        problem = in_our_words(message, self.prog, known_options(self._actions))
        raise ConfigError(f"{problem}; see {self.prog} --help.")

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(shown(message), file)
