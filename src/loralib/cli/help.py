"""Layout of the help of a command: usage, description, options (only the common ones if there are many), examples."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from .terminal import width

EVERYTHING = "--help-all"
_COLUMN, _WIDEST = 26, 100
_Sections = Sequence[tuple[str | None, list[argparse.Action]]]


class Formatter(argparse.HelpFormatter):
    """Shows options as `-o, --output DIR`, switches without a value, and keeps paragraphs with indented lines as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=_COLUMN, width=min(width(), _WIDEST) - 2)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        value = "" if action.nargs == 0 or action.metavar == "" else " " + self._format_args(action, action.dest.upper())
        return ", ".join(name for name in action.option_strings if not name.endswith("+")) + value

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(part if "\n " in part or part[0] == " " else textwrap.fill(part, width) for part in paragraphs)


class Everything(argparse.Action):
    """Prints the help with all options, and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser: Any, *_: Any) -> None:
        """Print it."""
        parser._print_message(full(parser, parser.examples), sys.stdout)
        parser.exit()


def full(parser: argparse.ArgumentParser, examples: Sequence[str]) -> str:
    """The help with all options, by section, and command lines as examples."""
    groups = [(group.title, group._group_actions) for group in parser._action_groups]
    return _written(parser, groups, [_listed(examples)])


def short(parser: argparse.ArgumentParser, common: Sequence[str], examples: Sequence[str]) -> str:
    """The help with the options `common` only, and how to see the others."""
    by_name = parser._option_string_actions
    count = sum(action.help != argparse.SUPPRESS for action in parser._actions)
    more = f"All {count} options: {parser.prog} {EVERYTHING}"
    shown = [by_name[name] for name in [*common, "--help", EVERYTHING]]
    return _written(parser, [("common options", shown)], [more, _listed(examples)])


def _listed(examples: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {example}" for example in examples)]) if examples else ""


def _written(parser: argparse.ArgumentParser, sections: _Sections, ends: Sequence[str]) -> str:
    formatter = Formatter(parser.prog)
    formatter.add_usage(parser.usage, parser._actions, [])
    formatter.add_text(parser.description)
    for title, actions in sections:
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()
    for text in filter(None, (parser.epilog, *ends)):
        formatter.add_text(text)
    return formatter.format_help()
