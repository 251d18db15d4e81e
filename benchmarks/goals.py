"""What a benchmark is, and its goals: figures computed from the rows that were measured, never written down.

A goal that says "geometric mean" has the mean over its cases; any other holds only if the worst case meets it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import OURS, Case, Options, Row


@dataclass(frozen=True)
class Goal:
    """name: as in the list of goals, or empty for a figure without one. figure: None where nothing was measured."""

    name: str
    claim: str
    figure: float | None
    at_most: float = math.inf
    at_least: float = -math.inf

    @property
    def met(self) -> bool | None:
        """Whether the figure is within the bounds; None where there are none, or no figure."""
        if self.figure is None or (self.at_most, self.at_least) == (math.inf, -math.inf):
            return None
        return self.at_least <= self.figure <= self.at_most

    @property
    def bound(self) -> str:
        """The bound in words."""
        upper = [f"≤ {self.at_most:.4g}"] if self.at_most < math.inf else []
        return " and ".join([f"≥ {self.at_least:.4g}"] * (self.at_least > -math.inf) + upper)

    def __str__(self) -> str:
        figure = "not measured" if self.figure is None else f"{self.figure:.5g}"
        verdict = {True: "met", False: "NOT MET", None: ""}[self.met]
        return f"{self.name or '—':4} {self.claim}: {figure}" + (f" (goal {self.bound}) {verdict}" if self.bound else "")


@dataclass(frozen=True)
class Benchmark:
    """A claim, and how it is put to the test.

    quick: cases for a first look, all of them in less than a minute. smallest: one that takes no time. figure: the column that
    the plot shows, whose axis is named by `axis`; at `ideal` there is a line.
    """

    cases: Sequence[Case]
    quick: Sequence[Case]
    smallest: Case
    measure: Callable[[Any, Options], list[Row]]
    goals: Callable[[list[Row]], list[Goal]]
    axis: str
    figure: str = "ratio"
    ideal: float = 1.0


def where(rows: Iterable[Row], **conditions: Any) -> list[Row]:
    """The rows whose columns have a value, or satisfy a predicate."""

    def fits(row: Row) -> bool:
        return all(wanted(row[key]) if callable(wanted) else row[key] == wanted for key, wanted in conditions.items())

    return [row for row in rows if fits(row)]


def column(rows: Iterable[Row], name: str, contender: str) -> list[float]:
    """The figures of a contender in a column, as far as there are any."""
    return [row[name] for row in rows if row["contender"] == contender and row[name] is not None]


def geometric_mean(values: Sequence[float]) -> float | None:
    """The geometric mean of positive numbers, or None of none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def worst(
    rows: Sequence[Row], name: str, contenders: Iterable[str], of: Callable[[Sequence[float]], float] = max
) -> float | None:
    """The largest (or `of`) figure of any of the contenders in a column; None of none."""
    values = [value for contender in contenders for value in column(rows, name, contender)]
    return of(values) if values else None


def slowest_mean(rows: Sequence[Row], peers: Iterable[str]) -> float | None:
    """How many times faster ours is, in the geometric mean over the cases, than the peer against which that is least."""
    means = [mean for peer in peers if (mean := geometric_mean(column(rows, "speedup", peer))) is not None]
    return min(means) if means else None


def overhead_share(rows: Sequence[Row], peers: Sequence[str]) -> float | None:
    """Our overhead over the reference, as a share of the smaller one of the peers', by geometric means over the cases."""
    by_case: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row["ratio"] is not None:
            by_case.setdefault((row["group"], row["case"]), {})[row["contender"]] = row["ratio"]
    ours = geometric_mean([case[OURS] for case in by_case.values()])
    theirs = geometric_mean([min(case[peer] for peer in peers if peer in case) for case in by_case.values()])
    if ours is None or theirs is None:
        return None
    return (ours - 1) / (theirs - 1) if theirs > 1 else math.inf
