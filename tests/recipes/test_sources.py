"""What a run trains on, is evaluated on and is scored on, by its options."""

from typing import Any

import pytest

from loralib.errors import DataError
from loralib.recipes import records, sources
from loralib.recipes.options import TrainOptions


def data(name: str, n: int = 20) -> Any:
    return records.dataset(name, [{"text": f"{name} {i // 2}", "row": i} for i in range(n)], "rows")


def options(**values: Any) -> TrainOptions:
    return TrainOptions.of({"model": "m"} | ({} if "task" in values else {"data": "d.tsv"}) | values)


def read(**values: Any) -> list[str | None]:
    """What is read for these options, in words."""

    def task(name: str, split: str, folder: str | None) -> Any:
        return data(f"{name} {split} in {folder}")

    def own(option: str, name: str, split: str | None) -> Any:
        return data(f"{option} {name} {split}")

    found = sources.read(options(**values), task, own)
    return [part and records.source(part) for part in found]


HUB = {"data": "imdb"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ["--data d.tsv train", None, None]),
        ({"eval_data": "e.tsv"}, ["--data d.tsv train", "--eval-data e.tsv None", None]),
        ({"test_data": "t.tsv"}, ["--data d.tsv train", None, "--test-data t.tsv None"]),
        ({"test_data": "t.tsv", "max_test_rows": 0}, ["--data d.tsv train", None, None]),
        (HUB | {"train_split": "all"}, ["--data imdb all", None, None]),
        (
            HUB | {"eval_split": "dev", "test_split": "test"},
            ["--data imdb train", "--eval-split imdb dev", "--test-split imdb test"],
        ),
        ({"task": "mrpc"}, ["mrpc train in None", "mrpc dev in None", None]),
        ({"task": "mrpc", "data_dir": "glue"}, ["mrpc train in glue", "mrpc dev in glue", None]),
        ({"task": "mrpc", "eval_fraction": 0.2}, ["mrpc train in None", None, "mrpc dev in None"]),
        ({"task": "mrpc", "eval_fraction": 0.2, "max_test_rows": 0}, ["mrpc train in None", None, None]),
    ],
)
def test_what_is_read_follows_from_the_options(values: dict[str, Any], expected: list[str | None]) -> None:
    assert read(**values) == expected


@pytest.mark.parametrize("part", ["eval", "test"])
def test_a_local_file_has_no_splits(part: str) -> None:
    with pytest.raises(DataError, match=f"--{part}-split names a split of a hub data set; d.tsv is a local file"):
        read(**{f"{part}_split": "dev"})


def test_rows_to_evaluate_on_are_held_out_where_there_are_none() -> None:
    train, held_out = sources.share_out(options(eval_fraction=0.25), [data("x"), None, None])
    assert (len(train), len(held_out)) == (15, 5)
    train, held_out = sources.share_out(options(), [data("x"), None, None], by="text")
    assert (len(train), len(held_out)) == (18, 2)
    assert len(set(held_out["text"])) == 1
    assert records.source(held_out) == "x (held out)"


def test_every_part_is_sampled_as_asked() -> None:
    chosen = options(max_train_rows=5, max_eval_rows=4, max_test_rows=3, test_data="t.tsv")
    parts = sources.share_out(chosen, [data("x"), data("y"), data("z")])
    assert [(records.source(part), len(part)) for part in parts] == [("x", 5), ("y", 4), ("z", 3)]
    assert [len(part) for part in sources.share_out(options(), [data("x"), data("y"), None])] == [20, 20]
    other = sources.share_out(options(max_train_rows=5, seed=1), [data("x"), data("y"), None])
    assert other[0]["row"][:] != parts[0]["row"][:]
