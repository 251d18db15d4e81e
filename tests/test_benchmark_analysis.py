"""The benchmark of analyses: both halves of it agree with the dense route, and goals are read from the large case."""

import sys
from pathlib import Path

import pytest
import torch

import loralib

sys.path.append(str(Path(__file__).parent.parent))  # `benchmarks` is not a part of what is installed

from benchmarks import analysis as benchmark
from benchmarks.harness import OURS, Effort, Options


@pytest.mark.parametrize("what", ["similarity", "amplification"])
def test_ours_agrees_with_the_dense_route(what: str) -> None:
    torch.manual_seed(0)
    case = benchmark.Analysis(what, 2, 24, 3)
    found = benchmark.contenders(case, "cpu", loralib)
    assert list(found) == [benchmark.DENSE, OURS]
    assert 0 < found[OURS].facts(1.0)["error"] < 1e-9
    assert found[benchmark.DENSE].facts(1.0)["error"] == 0


def test_goals_are_those_of_the_large_case() -> None:
    effort = Options(effort=Effort(rounds=2, seconds=0, measurement=0))
    rows = benchmark.measure(benchmark.Analysis("similarity", 3, 8, 2, dense=False), effort)
    assert [row["contender"] for row in rows] == [OURS]
    seconds, memory, *errors = benchmark.goals(rows)
    assert seconds.figure == pytest.approx(rows[0]["milliseconds"] / 1e3)
    assert memory.figure == pytest.approx(rows[0]["peak_bytes"] / (8 * 64))
    assert [goal.figure for goal in errors] == [None, None]
