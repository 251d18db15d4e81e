"""Where an adapter is asked for, the folder of a run stands for the adapter in it."""

from pathlib import Path
from typing import Any

import pytest

from loralib.cli import runs
from loralib.errors import RunError
from loralib.recipes import run_folder
from loralib.recipes.options import TrainOptions


def run(folder: Path, labels: list[str] | None = None, finished: bool = True, **values: Any) -> Path:
    options = TrainOptions.of({"model": "m", "data": "d.tsv"} | values)
    run_folder.write_options(folder, options, labels)
    (folder / ("adapter" if options.method == "lora" else "model")).mkdir()
    if finished:
        run_folder.write_metrics(folder, {})
    return folder


def test_a_run_is_known_by_its_two_files(tmp_path: Path) -> None:
    assert not runs.is_run(tmp_path)
    assert not runs.is_run(tmp_path / "none")
    assert runs.is_run(run(tmp_path / "run"))
    for name in ("config.yaml", "labels.json"):
        folder = run(tmp_path / name)
        (folder / name).unlink()
        assert not runs.is_run(folder)


def test_the_adapter_of_a_run_is_in_it_and_other_paths_stay(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    assert runs.adapter_in(folder) == folder / "adapter"
    for path in (folder / "adapter", tmp_path, tmp_path / "a.safetensors"):
        assert runs.adapter_in(path) == path


def test_runs_without_an_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"trained a whole model, which is in .*/model; it has no adapter") as refused:
        runs.adapter_in(run(tmp_path / "full", method="full"))
    assert f"loralib extract {tmp_path / 'full' / 'model'} m --r 16 -o ADAPTER" in refused.value.on_the_command_line()
    with pytest.raises(RunError, match="is not finished"):
        runs.adapter_in(run(tmp_path / "part", finished=False))


def test_a_folder_of_seeds_stands_for_its_runs(tmp_path: Path) -> None:
    assert runs.runs_in(tmp_path) == [tmp_path]
    run_folder.write_seeds(tmp_path, TrainOptions.of({"model": "m", "data": "d.tsv"}), 2)
    with pytest.raises(RunError, match=r"no seed in .* is finished"):
        runs.runs_in(tmp_path)
    inner = [run(tmp_path / f"seed-{seed}") for seed in (2, 10)]
    assert runs.runs_in(tmp_path) == inner


def test_classes_are_those_of_the_run_or_of_the_run_that_an_adapter_is_in(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", ["no", "yes"])
    assert runs.labels_of(folder) == runs.labels_of(folder / "adapter") == ["no", "yes"]
    assert runs.labels_of(run(tmp_path / "number")) is None
    assert runs.labels_of(tmp_path / "elsewhere" / "a.safetensors") is None
