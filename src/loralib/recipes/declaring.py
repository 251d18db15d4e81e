"""How options are declared: as fields of dataclasses with a help text and a rule; a base class is a section."""

import math
from collections.abc import Callable
from dataclasses import Field, field, fields
from typing import Any, NamedTuple, get_args


class Rule(NamedTuple):
    """What a value must be, and the words for it."""

    holds: Callable[[Any], bool]
    words: str


POSITIVE = Rule(lambda value: 0 < value < math.inf, "must be positive")
NOT_NEGATIVE = Rule(lambda value: 0 <= value < math.inf, "must not be negative")
FRACTION = Rule(lambda value: 0 <= value < 1, "must be in [0, 1)")
BETWEEN_0_AND_1 = Rule(lambda value: 0 < value < 1, "must be between 0 and 1")
SEED = Rule(lambda value: 0 <= value < 2**32, "must be in [0, 2**32)")


def one_of(kind: Any) -> Rule:
    """The rule for values of a `Literal`."""
    known = get_args(kind)
    return Rule(lambda value: value in known, f"must be one of {', '.join(known)}")


def option(default: Any, metavar: str, help: str, rule: Rule | None = None) -> Any:
    """A field with a default. metavar: what its value is called in the help; "" where choices are shown, and for switches."""
    return field(default=default, metadata={"metavar": metavar, "help": help, "rule": rule})


def sections(options: type) -> dict[str, list[Field[Any]]]:
    """The fields of a dataclass by the title of the base class that declares them, in its order."""
    declared = {base.__dict__["title"]: base.__annotations__ for base in reversed(options.__mro__) if "title" in base.__dict__}
    return {title: [option for option in fields(options) if option.name in own] for title, own in declared.items()}
