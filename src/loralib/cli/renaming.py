"""The option `--rename OLD=NEW` of the commands that read adapters."""

import argparse
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter


def add(group: argparse._ActionsContainer) -> None:
    """Add the option."""
    group.add_argument(
        "--rename",
        type=_pair,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="rename a module and all in it (no OLD: the model itself; no NEW: remove the name)",
    )


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no '='; write OLD=NEW")
    return old, new


def renamed(adapter: "Adapter", parsed: argparse.Namespace) -> "Adapter":
    """The adapter with the new names of the options. Raises `ConfigError` for two names of one module."""
    if len(names := dict(parsed.rename)) < len(parsed.rename):
        raise ConfigError("--rename gives one module two names; leave one out.")
    return adapter.rename(names) if names else adapter
