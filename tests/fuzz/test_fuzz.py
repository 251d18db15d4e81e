"""Readers and commands meet damaged and hostile files: see `fuzz`, which `make fuzz` runs for longer."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import folders
import pairs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutation import Hang, mutated, refused
from seeds import seeds

import loralib as lora

SEEDS = dict(seeds())
SCRIPT = Path(__file__).parent / "fuzz.py"


@pytest.mark.parametrize("name", SEEDS)
def test_what_fuzzing_begins_with_is_read(name, tmp_path):
    assert not refused(SEEDS[name], tmp_path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(sorted(SEEDS)), rng=st.randoms(use_true_random=False))
def test_a_mutated_file_is_read_or_refused(name, rng, tmp_path):
    refused(mutated(SEEDS[name], rng), tmp_path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_what_is_read_of_a_pair_of_config_and_tensors_is_an_adapter_in_every_way(rng, tmp_path):
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    pairs.refused(pairs.pair(rng), tmp_path)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return folders.make(tmp_path_factory.mktemp("folders") / "pristine")


@pytest.mark.parametrize("kind", ["base", "run"])
def test_commands_read_what_damage_begins_with(kind, pristine, tmp_path):
    refuse = {"resume", "score"}  # a run that is finished, and one of another kind
    with folders.copied(pristine, tmp_path / "copy") as folder:
        for i, (name, words) in enumerate(folders.commands(folder, folder / "out", kind).items()):
            shutil.rmtree(folder / "out", ignore_errors=True)
            assert folders.main(words) == (folders.MISUSED if name in refuse else 0), f"{i}: {name}"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kind=st.sampled_from(["base", "run"]), rng=st.randoms(use_true_random=False))
def test_a_damaged_folder_is_read_or_refused_and_nothing_else_changes(kind, rng, pristine, tmp_path):
    folders.tried(pristine, tmp_path / "copy", kind, rng)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("files", 4000), ("pairs", 2000), ("folders", 400)])
def test_thousands_of_them(kind, count):
    command = [sys.executable, str(SCRIPT), f"--{kind}", str(count), "--seed", str(random.randrange(10**6))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    read, refusals = [int(word.replace(",", "")) for word in run.stdout.split() if word[0].isdigit()][:2]
    assert min(read, refusals) > count / 40


def broken(path: Path, config: lora.LoRAConfig | None = None) -> lora.Adapter:
    raise KeyError("base_model")


def hungry(path: Path, config: lora.LoRAConfig | None = None) -> lora.Adapter:
    try:
        torch.empty(2**50)
    except RuntimeError as error:
        raise lora.FormatError(str(error)) from None
    raise AssertionError


def slow(path: Path, config: lora.LoRAConfig | None = None) -> lora.Adapter:
    time.sleep(10)
    raise AssertionError


@pytest.mark.parametrize(("reader", "finding"), [(broken, KeyError), (hungry, MemoryError), (slow, Hang)])
def test_a_reader_that_crashes_or_swallows_memory_or_hangs_is_found(reader, finding, tmp_path, monkeypatch):
    monkeypatch.setattr("mutation.SECONDS", 0.05)
    monkeypatch.setattr("loralib.formats.one_file.read", reader)
    with pytest.raises(finding):
        refused(SEEDS["safetensors"], tmp_path)


def _writes_elsewhere(words):
    (Path(words[1]).parent / "elsewhere").write_text("")
    return 0


def _leaves_output(words):
    Path(words[-1]).mkdir()
    return folders.MISUSED


def _shows_an_escape(words):
    print("\x1b[2J")
    return 0


def _crashes(words):
    raise KeyError("architectures")


def _fails(words):
    return 1


@pytest.mark.parametrize(
    ("command", "finding"),
    [
        (_writes_elsewhere, "changed"),
        (_leaves_output, "something is written"),
        (_shows_an_escape, "escape"),
        (_crashes, "architectures"),
        (_fails, "exit code 1"),
    ],
)
def test_a_command_that_does_what_it_may_not_is_found(command, finding, pristine, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "main", command)
    monkeypatch.setattr(folders, "commands", lambda folder, out, kind: {"merge": ["merge", str(folder / "base"), str(out)]})
    with pytest.raises((AssertionError, KeyError), match=finding):
        folders.tried(pristine, tmp_path / "copy", "base", random.Random(0))
