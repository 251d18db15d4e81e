"""What an adapter began with, made again from its run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import loralib as lora
from loralib.recipes.learned.findings import findings
from loralib.recipes.learned.measured import measure
from loralib.recipes.learned.starting import starting
from loralib.recipes.learned.subjects import Subject, subjects
from recipes.conftest import options, run
from reported import random_adapter

pytest_plugins = ["recipes.conftest"]


@pytest.fixture(scope="module")
def runs(encoder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    """Two runs of one seed that have learned nearly nothing, of rank 2 and 4."""
    folder = tmp_path_factory.mktemp("starting")
    still = {
        "learning_rate": 1e-9,
        "num_train_epochs": 1,
        "max_train_rows": 16,
        "batch_size": 16,
        "weight_decay": 0.0,
        "seed": 3,
    }
    for r in (2, 4):
        run(folder / f"r{r}", options(encoder, reviews, **still, r=r))
    paths = [folder / "r2", folder / "r4"]
    return subjects(paths, [lora.load(path / "adapter") for path in paths])


def test_the_start_is_what_the_run_began_with(runs: list[Subject]) -> None:
    for subject in runs:
        begun = starting(subject)
        assert isinstance(begun, lora.Adapter)
        assert begun.layers.keys() == subject.adapter.layers.keys()
        for name, update in begun.layers.items():
            torch.testing.assert_close(update.A, subject.adapter.layers[name].A, atol=1e-6, rtol=0)
            assert not update.B.any()


def test_two_of_one_seed_are_compared_at_their_start(runs: list[Subject]) -> None:
    measured = measure(runs, "A")
    [pair] = measured.pairs
    assert pair.start is not None
    assert not isinstance(pair.start, str)
    for name, found in pair.start.items():
        torch.testing.assert_close(found.phi, pair.similarity[name].phi, atol=1e-4, rtol=0)
    assert "Both began with seed 3" in " ".join(findings(measured)[0].sentences)


def test_what_cannot_be_made_again_is_a_sentence(runs: list[Subject], tmp_path: Path) -> None:
    assert starting(Subject("a", Path("a"), random_adapter(2, 0))) == "a is not a run"
    subject = runs[0]
    assert subject.run is not None
    gone = subject.run.options.updated({"data": str(tmp_path / "gone.tsv")})
    assert "gone.tsv does not exist" in str(starting(replace(subject, run=replace(subject.run, options=gone))))
    other = subject.run.options.updated({"r": 3})
    assert starting(replace(subject, run=replace(subject.run, options=other))) == "the model has other layers now"
