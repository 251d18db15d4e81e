"""The benchmark that compares what `count` says with the tensors that are there: on a tiny model."""

import sys
from pathlib import Path

import pytest

from loralib.recipes.cost import COUNTED

sys.path.append(str(Path(__file__).parent.parent))  # `benchmarks` is not a part of what is installed

from benchmarks import memory

pytest_plugins = ["recipes.conftest"]


@pytest.mark.parametrize("method", COUNTED)
@pytest.mark.parametrize("optimizer", memory.MEASURED)
def test_what_is_counted_is_there(encoder: Path, method: str, optimizer: str) -> None:
    row = memory.measured(str(encoder), method, optimizer)  # type: ignore[arg-type]
    assert row["as_counted"]
    assert row["counted"] == row["total"] < row["process_peak"]
    assert memory.table([row]).row_count == 1
