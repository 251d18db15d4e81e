"""torchrun starts the command as the page on several GPUs says it, with options that torchrun's own could be short for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "several-gpus.md"


@pytest.mark.slow
def test_the_line_of_the_page_passes_every_option_on() -> None:
    documented = re.search(
        r"^torchrun (--nproc-per-node) 4 (-m -- loralib train) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert documented is not None
    words = [documented[1], "2", *documented[2].split(), "--r", "0", "--model", "m", "--data", "d.tsv"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert "loralib: r=0: the rank must be a positive integer" in done.stderr
    assert "ambiguous" not in done.stderr
