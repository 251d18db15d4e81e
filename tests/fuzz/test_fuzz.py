"""Readers of adapters meet damaged and hostile files: see `fuzz_readers`, which `make fuzz` runs for longer."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutation import Hang, mutated, refused
from seeds import seeds

import loralib as lora

SEEDS = dict(seeds())
SCRIPT = Path(__file__).parent / "fuzz_readers.py"


@pytest.mark.parametrize("name", SEEDS)
def test_what_fuzzing_begins_with_is_read(name, tmp_path):
    assert not refused(SEEDS[name], tmp_path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(sorted(SEEDS)), rng=st.randoms(use_true_random=False))
def test_a_mutated_file_is_read_or_refused(name, rng, tmp_path):
    refused(mutated(SEEDS[name], rng), tmp_path)


@pytest.mark.slow
def test_thousands_of_mutated_files_within_little_memory():
    command = [sys.executable, str(SCRIPT), "--files", "4000", "--seed", str(random.randrange(10**6))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    read, refusals = [int(word.replace(",", "")) for word in run.stdout.split() if word[0].isdigit()][:2]
    assert min(read, refusals) > 100


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
