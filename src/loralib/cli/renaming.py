"""The option `--rename OLD=NEW` of the commands that read adapters."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..patterns import within

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
    names = _names(parsed)
    return adapter.rename(names) if names else adapter


def renamed_all(adapters: Sequence["Adapter"], parsed: argparse.Namespace) -> list["Adapter"]:
    """Each adapter with the new names of those modules that it has. Raises `TargetError` for a module that none has."""
    names = _names(parsed)
    own = [{old: new for old, new in names.items() if not old or _has(adapter, old)} for adapter in adapters]
    for old in names:
        if not any(old in fitting for fitting in own):
            adapters[0].rename({old: names[old]})  # which says what is nearest
    return [adapter.rename(fitting) if fitting else adapter for adapter, fitting in zip(adapters, own, strict=True)]


def _names(parsed: argparse.Namespace) -> dict[str, str]:
    if len(names := dict(parsed.rename)) < len(parsed.rename):
        raise ConfigError("--rename gives one module two names; leave one out.")
    return names


def _has(adapter: "Adapter", module: str) -> bool:
    return any(within(name, [module]) for name in (*adapter.layers, *adapter.tensors, *adapter.rows))
