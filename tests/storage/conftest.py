"""A process that has ended, for what it left."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def ended() -> str:
    """The tag of a write of a process that has ended."""
    program = "from loralib.storage.processes import tag; print(tag())"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.strip()


@pytest.fixture(scope="session")
def ended_pid(ended: str) -> int:
    """Its number."""
    return int(ended.partition("-")[0])
