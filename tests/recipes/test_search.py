"""Successive halving spends what it says, keeps the best, and never looks at the evaluation rows."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.cli import main
from loralib.errors import ConfigError
from loralib.recipes import comparison, run_folder, search
from loralib.recipes.options import TrainOptions
from loralib.recipes.search import Space, Trial

pytestmark = pytest.mark.slow


@given(st.integers(2, 60), st.integers(10, 100_000), st.integers(2, 5))
def test_rungs_narrow_by_eta_while_their_rows_grow(n: int, rows: int, eta: int) -> None:
    schedule = search.rungs(n, rows, eta)
    counts, budgets = zip(*schedule, strict=True)
    assert counts[0] == n
    assert 1 <= counts[-1] <= eta
    assert all(after == -(-before // eta) for before, after in itertools.pairwise(counts))
    assert list(budgets) == sorted(budgets)
    assert all(min(search.LEAST_ROWS, rows) <= budget <= max(rows, search.LEAST_ROWS) for budget in budgets)
    assert budgets[-1] == max(min(search.LEAST_ROWS, rows), rows // eta)


def trial(rung: int, rows: int, values: Any) -> Trial:
    return Trial(rung, rows, values, score=-abs(values["r"] - 5), trained=values["r"], seconds=0.0)


def test_the_best_survive_and_ties_go_to_fewer_parameters() -> None:
    seen: list[tuple[int, int]] = []

    def train(rung: int, rows: int, values: Any) -> Trial:
        seen.append((rung, values["r"]))
        return trial(rung, rows, values)

    trials = search.halve([{"r": r} for r in (1, 9, 6, 4, 8, 2, 16, 32, 7)], [(9, 10), (3, 30)], train)
    assert [r for rung, r in seen if rung == 1] == [4, 6, 7]
    assert trials[0].values == {"r": 4}  # as good as 6, and smaller
    assert len(trials) == 12


def test_trials_are_judged_on_training_rows_held_out() -> None:
    own = search.held_out(TrainOptions(model="m", data="d.tsv", eval_data="e.tsv", test_data="t.tsv", max_test_rows=5))
    assert (own.eval_data, own.test_data, own.eval_fraction, own.tests) == (None, None, 0.1, False)
    task = search.held_out(TrainOptions(model="m", task="sst2", eval_fraction=0.2))
    assert (task.eval_fraction, task.tests) == (0.2, False)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that the comparison starts are trained in this process; the folders they were written to."""
    folders: list[str] = []

    def train(words: list[str]) -> int:
        folders.append(Path(words[2]).stem)
        return main(words)

    monkeypatch.setattr(comparison, "wait_for", train)
    return folders


def test_a_search_trains_on_growing_parts_and_can_be_resumed(
    encoder: Path, reviews: Path, tmp_path: Path, in_process: list[str]
) -> None:
    options = TrainOptions(
        model=str(encoder), data=str(reviews / "train.tsv"), eval_data=str(reviews / "test.tsv"), num_train_epochs=1
    )
    space = Space(r=(2, 4), alpha=(1,), layers=("query", "mlp"), train_head=("all",), learning_rate=(1e-2,))
    told: list[Trial] = []
    trials = search.search(options, space, tmp_path, n=4, eta=2, on_progress=told.append)
    assert [trial.rows for trial in told] == [64] * 4 + [86] * 2
    assert sorted(trials, key=id) == sorted(told, key=id)
    assert trials[0].score >= trials[1].score
    assert {trial.rung for trial in trials[:2]} == {1}
    for run in tmp_path.glob("rung-*/candidate-?"):
        chosen, _ = run_folder.read_options(run)
        assert (chosen.eval_data, chosen.method) == (None, "lora")
        assert (run / run_folder.ADAPTER).is_dir()
        assert not (run / run_folder.CHECKPOINTS).exists()
    count = len(in_process)
    again = search.search(options, space, tmp_path, n=4, eta=2, resume=True)
    assert [t.values for t in again] == [t.values for t in trials]
    assert len(in_process) == count


@pytest.mark.parametrize("how", [{"n": 1}, {"eta": 1}])
def test_a_search_of_one_is_no_search(encoder: Path, reviews: Path, tmp_path: Path, how: dict[str, int]) -> None:
    options = TrainOptions(model=str(encoder), data=str(reviews / "train.tsv"))
    with pytest.raises(ConfigError, match="two candidates at least"):
        search.search(options, Space(), tmp_path, **how)
