"""What the commands that train many runs share."""

import csv
from pathlib import Path

import pytest

from loralib.cli import grids
from loralib.errors import ConfigError, RunError
from loralib.recipes.options import TrainOptions
from loralib.recipes.run_folder import holding_runs

WRITER = holding_runs("grid", "table.csv", "runs", done="table.csv")
VALUES = {"model": "m", "data": "d.tsv"}


def test_methods_are_read_in_the_order_in_which_they_stand() -> None:
    assert grids.read_methods("full, bitfit,lora") == ["full", "bitfit", "lora"]
    for joined in ("", " , ", "lora,lora", "lora,half"):
        with pytest.raises(ConfigError, match="give some of lora,last-layers,full,bitfit,prefix, each once"):
            grids.read_methods(joined)


def test_rates_are_those_that_were_given() -> None:
    chosen = {f"learning_rate_{name}": None for name in ("lora", "last_layers", "full", "bitfit", "prefix")}
    assert grids.rates_of(chosen) == {}
    assert grids.rates_of(chosen | {"learning_rate_last_layers": 0.5}) == {"last-layers": 0.5}


def test_an_option_that_lora_does_not_take_goes_to_those_that_do() -> None:
    values = VALUES | {"prefix_length": 4, "r": 2, "output": "here"}
    own = grids.of_lora(values, ["lora", "prefix"])
    assert own == VALUES | {"r": 2, "output": "here"}
    assert grids.shared(TrainOptions.of(own), values) == VALUES | {"prefix_length": 4, "r": 2}
    with pytest.raises(ConfigError, match="--prefix-length has no effect with method=lora, full; leave it out"):
        grids.of_lora(values, ["lora", "full"])


RUNNING = {"overwrite": False, "resume": False, "seeds": 1}


@pytest.mark.parametrize("changes", [{"overwrite": True, "resume": True}, {"seeds": 0}])
def test_contradictions_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"contradict each other|--seeds 0: must be positive"):
        grids.check_running(RUNNING | changes)


def fail(folder: Path, error: type[BaseException], finished: bool = False) -> None:
    """Write to `folder`, perhaps the outcome of a run, and fail."""
    with WRITER.alone_in(folder), grids.kept(WRITER, folder, overwrite=False, resume=False):
        if finished:
            (folder / "runs" / "a").mkdir(parents=True)
            (folder / "runs" / "a" / "metrics.json").write_text("{}")
        raise error("it failed")


def test_after_a_failure_only_what_can_be_gone_on_with_stays(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match="Go on with the same words and --resume"):
        fail(folder, KeyboardInterrupt)
    with pytest.raises(RunError, match="it failed"):
        fail(folder, RunError)
    assert not folder.exists()
    with pytest.raises(RunError, match="it failed"):
        fail(folder, RunError, finished=True)
    assert (folder / "runs" / "a" / "metrics.json").is_file()
    with pytest.raises(RunError, match="add --resume to go on with it"):
        fail(folder, RunError)


def test_rows_become_a_table(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": "x,y"}, {"a": 2, "b": ""}]
    grids.write_csv(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": "x,y"}, {"a": "2", "b": ""}]
