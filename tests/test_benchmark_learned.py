"""The benchmark of what LoRA learned: its figures and answers, and all of its stages with tiny models."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import loralib as lora
from loralib.cli import main
from loralib.recipes import comparison
from peers import data
from sample_adapters import tensor

sys.path.append(str(Path(__file__).parent.parent))  # `benchmarks` is not a part of what is installed

from benchmarks import learned as benchmark
from benchmarks.learned import RANKS, SEEDS, Budget, Run

pytest_plugins = ["recipes.conftest", "recipes.chat.conftest"]

LAYERS = [f"encoder.layer.{i}.self.{kind}" for i in (0, 1) for kind in ("query", "value")]
TINY = {"max_train_rows": 16, "max_eval_rows": 8, "num_train_epochs": 1, "batch_size": 8}


def run(r: int, seed: int, shared: float) -> Run:
    """A run whose first direction is that of all others where `shared` is not 0, and whose other directions are its own."""
    layers, before = {}, {}
    for n, name in enumerate(LAYERS):
        A, B = tensor((r, 40), torch.float64, 100 * seed + r + n), tensor((40, r), torch.float64, 100 * seed + r + n + 50)
        before[name] = lora.LoRAUpdate(A.clone(), torch.zeros_like(B), 4)
        if shared:
            A[0], B[:, 0] = shared * torch.ones(40), shared * torch.ones(40)
        layers[name] = lora.LoRAUpdate(A, B, 4)
    one, other = (lora.Adapter(lora.LoRAConfig(), each) for each in (layers, before))
    return Run(r, seed, one, other, 0.5)


def base() -> nn.Module:
    block = lambda: nn.ModuleDict({"self": nn.ModuleDict({kind: nn.Linear(40, 40) for kind in ("query", "value")})})  # noqa: E731
    return nn.ModuleDict({"encoder": nn.ModuleDict({"layer": nn.ModuleList([block(), block()])})})


BUDGET = Budget(ranks=(2, 8), amplified=1)


def test_figures_are_those_of_the_library() -> None:
    runs, model = [run(r, seed, 5.0) for seed in (0, 1) for r in (2, 8)], base()
    rows = benchmark.figures_of(runs, model, BUDGET)
    assert {row["finding"] for row in rows} == {
        *(RANKS, SEEDS, "amplification", "in ΔW's directions", "in W's directions", "overlap"),
    }
    assert len({tuple(row) for row in rows}) == 1, "all rows have the same columns"
    assert all(row["value"] is not None and math.isfinite(row["value"]) for row in rows)
    small, large = runs[0], runs[3]
    found = lora.subspace_similarity(small.adapter, large.adapter, "A", starting=(small.starting, large.starting))[LAYERS[1]]
    place = {"run": "r 2, seed 0", "other": "r 8, seed 1", "of": "A", "layer": LAYERS[1], "i": 2, "j": 8}
    (row,) = (row for row in rows if place.items() <= row.items())
    assert found.starting is not None
    assert (row["depth"], row["matrix"]) == (0, "v")
    assert (row["value"], row["chance"]) == (found.at(2, 8), pytest.approx(8 / 40))
    assert row["starting"] == pytest.approx(float(found.starting[1, 7]))
    table7 = lora.amplification(large.adapter, model, 1)[LAYERS[2]]
    place = {"finding": "amplification", "run": "r 8, seed 1", "layer": LAYERS[2], "i": 1}
    assert [row["value"] for row in rows if place.items() <= row.items()] == [table7.factor]
    assert {(row["run"], row["other"]) for row in rows if row["finding"] == RANKS} == {
        ("r 2, seed 0", "r 8, seed 1"),
        ("r 2, seed 1", "r 8, seed 0"),
    }


@pytest.mark.parametrize(("shared", "answer"), [(5.0, "yes"), (0.0, "no")])
def test_a_direction_that_all_share_is_found(shared: float, answer: str) -> None:
    runs = [run(r, seed, shared) for seed in (0, 1) for r in (2, 8)]
    answered = benchmark.answers(benchmark.figures_of(runs, base(), BUDGET), BUDGET)
    found = {row["finding"]: row["answer"] for row in answered}
    assert found["two ranks share their first direction"] == answer
    assert found["the two first directions are alike in most layers"] == answer
    assert found["two seeds share less, the lower the direction"] == answer
    assert len(answered) == 9
    assert all(row["answer"] == benchmark.decided(row["figure"], row["against"]) for row in answered)
    assert benchmark.table([{"task": "sst2", **row} for row in answered]).row_count == 9


@pytest.mark.parametrize(
    ("figure", "against", "answer"), [(2, 1, "yes"), (1, 2, "no"), (1.05, 1, "undecided"), (0, 0, "undecided")]
)
def test_figures_that_hardly_differ_decide_nothing(figure: float, against: float, answer: str) -> None:
    assert benchmark.decided(figure, against) == answer


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are trained, in this process."""
    names: list[str] = []

    def wait_for(words: Sequence[str]) -> int:
        names.append(Path(words[2]).stem)
        return main(list(words))

    monkeypatch.setattr(comparison, "wait_for", wait_for)
    return names


@pytest.mark.slow
def test_every_stage_and_going_on(trained: list[str], encoder: Path, chatter: Path, tmp_path: Path) -> None:
    models = {"mrpc": encoder, "e2e": chatter}
    changes = {task: {"model": str(model), **TINY} for task, model in models.items()}
    budget = Budget(tasks=tuple(models), ranks=(2, 4), amplified=1, changes=changes)
    rows, answered = benchmark.measure(data(), tmp_path, budget, Console())
    assert len(trained) == 8
    assert {row["task"] for row in rows} == {row["task"] for row in answered} == set(models)
    assert len(answered) == 2 * 9
    assert all(math.isfinite(row["value"]) for row in rows)
    again = benchmark.measure(data(), tmp_path, budget, Console())
    assert len(trained) == 8
    assert again == (rows, answered)


@pytest.mark.slow
def test_the_starting_values_are_those_of_the_run(trained: list[str], encoder: Path, tmp_path: Path) -> None:
    budget = Budget(changes={"mrpc": {"model": str(encoder), **TINY, "learning_rate": 1e-7}}, ranks=(2, 4), seeds=(3,))
    (run, wider), model = benchmark.trained(data(), tmp_path, "mrpc", budget)
    assert run.adapter.layers.keys() == run.starting.layers.keys()
    for name, update in run.adapter.layers.items():
        before = run.starting.layers[name]
        assert torch.allclose(update.A, before.A, atol=1e-5)
        assert not before.B.any()
        assert update.B.any()
        assert wider.starting.layers[name].A.shape == (4, before.A.shape[1])
    assert not any("lora" in name for name, _ in model.named_parameters())
