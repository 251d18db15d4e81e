"""Two processes learn from conversations what one learns, and find the same perplexity, in padded rows and in packed ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import loralib as lora
from loralib.recipes import run_folder
from models import close
from recipes.chat.conftest import CITIES, options, run, talk

pytestmark = pytest.mark.slow


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Conversations of very different lengths, of which a process gets others than the next."""
    rows = [talk(land) for land in [*CITIES] * 6]
    for i, row in enumerate(rows):
        row["messages"][0]["content"] += " It is" * (i % 7)
        row["messages"][1]["content"] += " Thanks" * (i % 5)
    path = tmp_path / "uneven.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("packing", [False, True])
def test_two_processes_learn_what_one_learns(packing: bool, chatter: Path, uneven: Path, tmp_path: Path) -> None:
    sizes = {"max_length": 88, "per_device_eval_batch_size": 3}  # 24 rows, and 12 packed ones: whole steps of 4
    chosen = options(chatter, uneven, num_train_epochs=1, packing=packing, **sizes)
    alone = run(tmp_path / "alone", chosen)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(chosen.to_dict() | {"output": str(tmp_path / "both")}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, "-m", "loralib", "train", "--config", str(tmp_path / "run.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "both" / run_folder.METRICS).read_text())
    assert both["value"] == pytest.approx(alone["value"], rel=1e-3)
    factors = [lora.load(tmp_path / name / run_folder.ADAPTER).layers for name in ("alone", "both")]
    for name, update in factors[0].items():
        assert close(update.B, factors[1][name].B, factor=1e4)
