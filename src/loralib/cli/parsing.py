"""What the commands' parsers share."""

import argparse
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ..errors import ConfigError


def dataclass_parser(options: type, prog: str, description: str) -> ArgumentParser:
    """A parser with one `--option` for each field of the dataclass `options`, and `--config FILE` to take them from YAML.

    Words after `--config` override the file's. Types are checked as the fields are annotated.
    """
    parser = ArgumentParser(prog=prog, description=description, formatter_class=argparse.HelpFormatter, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    hints = get_type_hints(options)
    groups: dict[str, Any] = {}
    for option in fields(options):
        title = option.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], option, hints[option.name])
    return parser


def _add(group: Any, option: Field[Any], kind: Any) -> None:
    default = "" if option.default is None else f" (default: {option.default})"
    group.add_argument(_flag(option.name), type=kind, default=option.default, help=option.metadata["help"] + default)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_run(parser: argparse.ArgumentParser) -> None:
    """The positional argument RUN."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder that loralib train wrote")


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """The parsed words; `ConfigError`, in one sentence, for words that the parser does not take."""
    try:
        return parser.parse_args(list(words))
    except ArgumentError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{said.rstrip('.')}; see {parser.prog} --help.") from None
