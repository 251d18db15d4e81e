"""Which file an error is about, runs where adapters are asked for, and expressions in files that take too long."""

import errno
import json
import shutil
from pathlib import Path

import pytest

import loralib as lora
from loralib.cli import FAILED, guarded, main
from loralib.recipes import run_folder
from loralib.recipes.options import TrainOptions

pytest_plugins = ["recipes.conftest"]


@pytest.fixture(scope="module")
def run(encoder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named") / "run"
    data = ["--data", str(reviews / "test.tsv"), "-o", str(folder), "--num-train-epochs", "1"]
    assert main(["train", "--model", str(encoder), "--target-modules", "all-linear", *data]) == 0
    return folder


def test_commands_on_adapters_take_the_folder_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for place in (run, run / "adapter"):
        assert main(["info", str(place), "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first)["digest"] == json.loads(second)["digest"]
    assert main(["convert", str(run), "-o", str(tmp_path / "a.safetensors"), "--format", "safetensors"]) == 0
    assert main(["combine", str(run), str(run), "--weights", "0.5", "0.5", "-o", str(tmp_path / "two")]) == 0
    assert lora.load(tmp_path / "a.safetensors").digest() == json.loads(first)["digest"]
    assert set(lora.load(tmp_path / "two").layers) == set(lora.load(run / "adapter").layers)


@pytest.mark.parametrize(
    ("code", "named"), [(errno.ENOSPC, "(target)"), (errno.EACCES, "(source → target)"), (errno.EDQUOT, "(target)")]
)
def test_a_full_disk_names_what_is_written(code: int, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    def copy() -> int:
        raise OSError(code, "no", "source", None, "target")

    assert guarded(copy) == FAILED
    assert capsys.readouterr().err.endswith(f"{named}.\n")


def test_copying_to_a_full_disk_names_the_copy(
    run: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    assert main(["merge", str(encoder), str(run), "-o", str(tmp_path / "out")]) == FAILED
    said = capsys.readouterr().err
    assert str(encoder) not in said
    assert str(tmp_path) in said


EVIL = "((a+)+)+b"


def test_expressions_of_a_run_and_of_a_key_map_are_refused_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({EVIL: "x.lora_A"}))
    file = str(run / "adapter" / "adapter_model.safetensors")
    assert main(["info", file, "--keys", str(keys)]) == 2
    assert "repeats a group" in capsys.readouterr().err
    for lora_options in ({"rank_pattern": {EVIL: 2}}, {"target_modules": EVIL}, {"alpha_pattern": {EVIL: 2.0}}):
        run_folder.write_options(tmp_path, TrainOptions.of({"model": "m", "data": "d.tsv", "lora": lora_options}), ["a", "b"])
        field = next(iter(lora_options))
        for words in (["predict", str(tmp_path), "text"], ["train", "--config", str(tmp_path / "config.yaml")]):
            assert main(words) == 2
            said = capsys.readouterr().err
            assert f"{field}: '{EVIL}' repeats a group" in said
            assert "config.yaml" in said
