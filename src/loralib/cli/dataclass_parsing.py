"""Parsers made from dataclasses, which also read YAML files; with jsonargparse, of the extra `train`."""

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import Field, fields
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from ..errors import ConfigError


def dataclass_parser(options: type, prog: str, description: str, without: Collection[str] = ()) -> ArgumentParser:
    """A parser with one `--option` for each field of the dataclass `options` but those in `without`, and `--config FILE` to
    take them from YAML.

    Words after `--config` override the file's. Types are checked as the fields are annotated.
    """
    parser = ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    help_ = "YAML file with any of these options (paths in it are relative to the working directory)"
    parser.add_argument("--config", action="config", help=help_)
    hints = get_type_hints(options)
    groups: dict[str, Any] = {}
    for option in (field for field in fields(options) if field.name not in without):
        title = option.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], option, hints[option.name])
    return parser


def _add(group: Any, option: Field[Any], kind: Any) -> None:
    default = "" if option.default is None else f" (default: {str(option.default).lower() if kind is bool else option.default})"
    how = {"nargs": "?", "const": True} if kind is bool else {}
    group.add_argument(_flag(option.name), type=kind, default=option.default, help=option.metadata["help"] + default, **how)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def given(parser: ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """What the words (and the YAML file that they name) say, without defaults; `ConfigError`, in one sentence, for words
    that the parser does not take."""
    try:
        parsed = parser.parse_args(list(words), defaults=False)
    except ArgumentError as error:
        said = " ".join(str(error).split()).rstrip(".")
        said = re.sub(r"<class '(\w+)'>", r"\1", re.sub(r'Parser key "(\w+)":', lambda m: _flag(m[1]) + ":", said))
        raise ConfigError(f"{said}; see {parser.prog} --help.") from None
    return {name: value for name, value in vars(parsed).items() if name != "config"}
