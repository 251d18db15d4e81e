"""The adapters of a report: names that tell them apart, runs that are found, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loralib as lora
from loralib.recipes import run_folder
from loralib.recipes.learned.subjects import by_paths, pairs, run_of, subjects
from loralib.recipes.options import TrainOptions
from reported import random_adapter


def write_run(folder: Path, metrics: Any = None, **options: Any) -> Path:
    """A finished run with a random adapter."""
    chosen = TrainOptions.of({"model": "org/model", "data": "rows.tsv", **options})
    run_folder.write_options(folder, chosen, ["no", "yes"])
    lora.save(random_adapter(chosen.lora.r, chosen.seed), folder / "adapter")
    (folder / "metrics.json").write_text(json.dumps({"metric": "accuracy", "value": 0.9} if metrics is None else metrics))
    return folder


def found(*paths: Path) -> list[str]:
    adapters = [lora.load(path / "adapter" if (path / "adapter").is_dir() else path) for path in paths]
    return [subject.name for subject in subjects(paths, adapters)]


def test_runs_are_called_by_what_they_differ_in(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", r=2, seed=1)
    b = write_run(tmp_path / "b", r=4, seed=1)
    c = write_run(tmp_path / "c", r=4, seed=2)
    d = write_run(tmp_path / "d", r=4, seed=2, data="other.tsv", learning_rate=1e-3)
    assert found(a) == ["a"]
    assert found(a, b) == ["r 2", "r 4"]
    assert found(a, b, c) == ["r 2, seed 1", "r 4, seed 1", "r 4, seed 2"]
    lora.save(random_adapter(4, 9), d / "adapter")
    assert found(c, d) == ["rows", "other"]


def test_runs_that_differ_in_nothing_known_are_called_by_their_paths(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", r=2), write_run(tmp_path / "b", r=2, batch_size=8)
    lora.save(random_adapter(2, 99), b / "adapter")
    assert found(a, b) == ["a", "b"]
    lora.save(random_adapter(3, 7), tmp_path / "plain")
    assert found(a, tmp_path / "plain") == ["a", "plain"]


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join), min_size=1, max_size=4, unique=True))
def test_names_by_paths_differ_and_are_ends_of_them(texts: list[str]) -> None:
    names = by_paths([Path(text) for text in texts])
    assert len(set(names)) == len(names)
    for name, text in zip(names, texts, strict=True):
        assert str(Path(text).absolute()).endswith(name)


def test_the_adapter_within_a_run_knows_its_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", r=2, seed=5)
    known = [run_of(path) for path in (run, run / "adapter")]
    assert [one and one.options.seed for one in known] == [5, 5]
    assert known[0] is not None
    assert (known[0].metric, known[0].value, known[0].history) == ("accuracy", 0.9, [])
    (run / "metrics.json").unlink()
    assert run_of(run) is None
    assert run_of(tmp_path) is None


@pytest.mark.parametrize(
    "metrics", [[], {"value": "x", "history": 3}, {"history": [3, {"loss": 1}, {"epoch": 1, "loss": "x"}]}]
)
def test_strange_results_are_as_if_they_were_not_there(metrics: Any, tmp_path: Path) -> None:
    run = run_of(write_run(tmp_path / "run", metrics))
    assert run is not None
    assert run.value is None
    assert all("loss" not in row for row in run.history)


def test_damaged_results_are_one_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "samples.jsonl").write_text('{"answers": []}\n[1]\n')
    read = run_of(run)
    assert read is not None
    assert read.samples == [{"answers": []}]
    (run / "metrics.json").write_text("{")
    with pytest.raises(lora.RunError, match=r"the results of the run in .* cannot be read .*Nothing was written\."):
        run_of(run)


def test_adapters_without_layers_and_twice_are_refused(tmp_path: Path) -> None:
    adapter = random_adapter(2, 0)
    with pytest.raises(lora.ConfigError, match=r"a has no layers"):
        subjects([Path("a")], [adapter.with_layers({})])
    with pytest.raises(lora.ConfigError, match=r"a is given twice"):
        subjects([Path("a"), Path("x/../a")], [adapter, adapter])
    with pytest.raises(lora.ConfigError, match=r"a and b hold the same adapter"):
        subjects([Path("a"), Path("b")], [adapter, replace(adapter, source="elsewhere")])


def test_ranks_are_said_and_order_a_pair() -> None:
    low, high = random_adapter(2, 0), random_adapter(5, 1, ["x"])
    mixed = low.with_layers({**low.layers, **high.layers})
    one, two = subjects([Path("a"), Path("b")], [mixed, random_adapter(3, 2)])
    assert (one.rank, two.rank, one.seed) == ("2 to 5", "3", None)
    assert pairs([one, two]) == [(two, one)]
