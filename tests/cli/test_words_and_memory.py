"""Words that are empty, paths below files, and memory that runs out: one sentence each, and nothing is written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import loralib as lora
from loralib.cli import FAILED, MISUSED, guarded, main
from loralib.errors import ConfigError


@pytest.mark.parametrize("words", [["-o", ""], ["--output="], ["--output", ""], [""]])
@pytest.mark.parametrize("command", ["convert", "train", "info", "evaluate"])
def test_an_empty_word_is_refused_before_anything_is_written(
    command: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, *words]) == MISUSED
    assert "is empty; leave it out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def allocated() -> int:
    return torch.empty(1 << 60, dtype=torch.uint8).numel()


def of_a_gpu() -> int:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB.\nmore")


def of_python() -> int:
    raise MemoryError


@pytest.mark.parametrize("work", [allocated, of_a_gpu, of_python])
def test_memory_that_runs_out_is_one_sentence(work: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(work) == FAILED
    said = capsys.readouterr().err
    assert said.startswith("loralib: there is not enough memory (")
    assert said.count("\n") == 1


def test_other_errors_at_run_time_stay_what_they_are() -> None:
    def wrong() -> int:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        guarded(wrong)


@pytest.mark.parametrize("kind", [NotADirectoryError, FileExistsError])
def test_a_file_in_the_place_of_a_folder_is_called_so(kind: type[OSError], capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> int:
        raise kind(20, "Not a directory", "train.tsv/out")

    assert guarded(write) == FAILED
    assert capsys.readouterr().err == "loralib: a file is in the place of a folder (train.tsv/out).\n"


def test_a_lora_alpha_that_no_float_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora_alpha=1000.*: must be a positive number"):
        lora.LoRAConfig(lora_alpha=10**400)


@pytest.mark.parametrize("alpha", [1e308, 3.5e38])
def test_a_lora_alpha_that_float32_does_not_have_is_not_injected(alpha: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    for config in (lora.LoRAConfig(lora_alpha=alpha), lora.LoRAConfig(alpha_pattern={"0": alpha})):
        with pytest.raises(ConfigError, match="too large for float32"):
            lora.inject(model, config)
        assert type(model[0]) is torch.nn.Linear
