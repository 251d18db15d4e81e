"""Options are declared as fields: each in the section of the class that has it, with a rule for its values."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import pytest

from loralib.recipes.declaring import BETWEEN_0_AND_1, FRACTION, NOT_NEGATIVE, POSITIVE, SEED, Rule, one_of, option, sections


@dataclass(frozen=True, kw_only=True)
class First:
    title: ClassVar[str] = "first"
    a: int = option(1, "N", "a number", POSITIVE)


@dataclass(frozen=True, kw_only=True)
class Second:
    title: ClassVar[str] = "second"
    b: int = option(2, "N", "another number")


@dataclass(frozen=True, kw_only=True)
class Both(Second, First):
    """The fields of the last base class come first."""


def test_fields_stand_in_the_sections_of_their_classes_in_order() -> None:
    assert {title: [field.name for field in found] for title, found in sections(Both).items()} == {
        "first": ["a"],
        "second": ["b"],
    }
    assert [field.name for field in fields(Both)] == ["a", "b"]
    assert dict(fields(Both)[0].metadata) == {"metavar": "N", "help": "a number", "rule": POSITIVE}


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (POSITIVE, [1, 0.1], [0, -1, float("inf"), float("nan")]),
        (NOT_NEGATIVE, [0, 3], [-1e-9, float("inf"), float("nan")]),
        (FRACTION, [0, 0.99], [1, -0.1, float("nan")]),
        (BETWEEN_0_AND_1, [0.5, 1e-8], [0, 1, float("nan")]),
        (SEED, [0, 2**32 - 1], [-1, 2**32]),
        (one_of(Literal["x", "y"]), ["x", "y"], ["z", ""]),
    ],
)
def test_rules_hold_for_what_they_say(rule: Rule, good: list[Any], bad: list[Any]) -> None:
    assert [rule.holds(value) for value in [*good, *bad]] == [True] * len(good) + [False] * len(bad)
    assert rule.words.startswith("must ")
