"""The scripts that build the site are importable, as they are for MkDocs; pages leave no processes' group behind."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed

sys.path.append(str(Path(__file__).parents[2] / "docs" / "hooks"))


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """No process group outlives a test."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
