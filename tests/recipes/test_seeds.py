"""Seeds: their median, and what an interruption leaves."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from loralib.cli import main
from loralib.errors import DataError, RunError
from loralib.recipes import run_folder, seeds
from loralib.recipes.options import TrainOptions
from recipes.nlu.test_text_classification import InterruptAt

pytestmark = pytest.mark.slow


def options(encoder: Path, reviews: Path, **values: Any) -> TrainOptions:
    common: dict[str, Any] = {
        "model": str(encoder),
        "data": str(reviews / "train.tsv"),
        "r": 4,
        "num_train_epochs": 1,
        "batch_size": 16,
    }
    return TrainOptions.of(common | values)


def train(folder: Path, chosen: TrainOptions, count: int, **how: Any) -> list[dict[str, Any]]:
    return seeds.train_seeds(chosen, folder, count, console=Console(file=io.StringIO()), **how)


@pytest.fixture(scope="module")
def three(encoder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds") / "three"
    train(folder, options(encoder, reviews, seed=4, learning_rate=1e-2), 3)
    return folder


def test_each_seed_has_its_run_and_the_median_is_written(three: Path) -> None:
    assert {path.name for path in three.iterdir()} == {
        "seed-4",
        "seed-5",
        "seed-6",
        "seeds.yaml",
        "summary.json",
        ".loralib.json",
    }
    found = json.loads((three / run_folder.SUMMARY).read_text())
    values = {seed: json.loads((three / f"seed-{seed}" / run_folder.METRICS).read_text())["value"] for seed in (4, 5, 6)}
    assert found["values"] == {str(seed): value for seed, value in values.items()}
    assert found["median"] == sorted(values.values())[1]
    assert found["metric"] == "accuracy"
    assert seeds.best_of(three) == three / f"seed-{max(values, key=lambda seed: values[seed])}"
    adapters = [(three / f"seed-{seed}" / run_folder.ADAPTER / "adapter_model.safetensors").read_bytes() for seed in (4, 5, 6)]
    assert len(set(adapters)) == 3


def test_the_spread_is_that_of_a_sample() -> None:
    results = [
        {"metric": "accuracy", "value": value, "seed": i, "kept_epoch": 1.0, "parameters": {}, "train_seconds": 2.0}
        for i, value in enumerate((0.5, 0.7, 0.9))
    ]
    found = seeds.summary(results)
    assert (found["median"], found["deviation"]) == (0.7, pytest.approx(0.2))
    assert found["train_seconds"] == 6.0
    assert seeds.summary(results[:1])["deviation"] == 0.0


def test_an_interrupt_keeps_the_finished_seeds_and_resuming_gives_the_same(
    encoder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = options(encoder, reviews, num_train_epochs=2)
    train(tmp_path / "straight", chosen, 2)
    train(tmp_path / "run", chosen, 1)
    before = (tmp_path / "run" / "seed-0" / run_folder.METRICS).stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt, match=r"at seed 1; .* loralib train --output .*run --resume"):
        train(tmp_path / "run", chosen, 2, resume=True, callbacks=[InterruptAt(8)])
    assert not (tmp_path / "run" / "seed-1" / run_folder.METRICS).exists()
    assert main(["train", "--output", str(tmp_path / "run"), "--resume"]) == 0
    assert "median of 2" in capsys.readouterr().out
    assert (tmp_path / "run" / "seed-0" / run_folder.METRICS).stat().st_mtime_ns == before
    found, expected = (json.loads((tmp_path / name / run_folder.SUMMARY).read_text()) for name in ("run", "straight"))
    assert found["values"] == expected["values"]
    weights = [
        (tmp_path / n / "seed-1" / run_folder.ADAPTER / "adapter_model.safetensors").read_bytes() for n in ("run", "straight")
    ]
    assert weights[0] == weights[1]


def test_a_folder_that_is_taken_is_refused_and_can_be_replaced(encoder: Path, reviews: Path, three: Path) -> None:
    chosen = options(encoder, reviews, seed=4)
    with pytest.raises(RunError, match="add --resume to go on with it, or --overwrite"):
        train(three, chosen, 3)
    (three / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"holds what no seeds wrote \(thesis.tex\)"):
        train(three, chosen, 3, overwrite=True)
    assert (three / "seed-4" / run_folder.METRICS).exists()
    (three / "thesis.tex").unlink()
    run_folder.MANY.clear(three)
    assert not list(three.iterdir())


def test_words_that_cannot_work_leave_no_folder(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        train(tmp_path / "run", options(encoder, reviews, data="missing.tsv"), 2)
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunError, match="--seeds 0"):
        train(tmp_path / "run", options(encoder, reviews), 0)


def test_damaged_seeds_are_one_error(tmp_path: Path) -> None:
    for content in ("", "[1]", "seeds: x", yaml.safe_dump({"seeds": 2, "options": {"model": "m"}})):
        (tmp_path / run_folder.SEEDS).write_text(content)
        with pytest.raises(RunError, match=r"^[^\n]*seeds.yaml is damaged[^\n]*$"):
            run_folder.read_seeds(tmp_path)


def test_two_processes_share_the_seeds(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    data = ["--model", str(encoder), "--data", str(reviews / "train.tsv"), "--output", str(tmp_path / "run")]
    words = [*torchrun, "-m", "loralib", "train", *data, "--num-train-epochs", "1", "--batch-size", "16", "--seeds", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("median of 2") == 1
    assert json.loads((tmp_path / "run" / run_folder.SUMMARY).read_text())["values"].keys() == {"0", "1"}
