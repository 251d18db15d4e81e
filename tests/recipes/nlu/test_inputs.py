"""Options become rows and classes, or are refused before anything is fetched."""

from pathlib import Path
from typing import Any

import pytest

from loralib.errors import DataError
from loralib.recipes.nlu import inputs, readers
from loralib.recipes.options import TrainOptions
from loralib.recipes.records import source
from recipes.conftest import labelled


def options(folder: Path, **values: Any) -> TrainOptions:
    return TrainOptions(**{"model": "any", "data": str(folder / "train.tsv")} | values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train.tsv has 40 rows, one of them of the class `rare`; dev.tsv has one row of a class of its own."""
    labels = ["rare", *["good", "bad"] * 20][:40]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(f"t{i}\t{label}\n" for i, label in enumerate(labels)))
    (tmp_path / "dev.tsv").write_text("text\tlabel\nx\tgood\ny\tnew\n")
    return tmp_path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when the hub is asked."""

    def refuse(*args: Any) -> Any:
        pytest.fail(f"the hub was asked for {args}")

    monkeypatch.setattr(readers, "read_hub", refuse)


@pytest.mark.parametrize("values", [{"max_train_rows": 2}, {"eval_fraction": 0.5}, {"eval_fraction": 0.9, "max_train_rows": 1}])
@pytest.mark.parametrize("seed", range(4))
def test_the_classes_are_those_of_the_whole_training_file(folder: Path, values: dict[str, Any], seed: int) -> None:
    chosen = options(folder, seed=seed, **values)
    parts = inputs.read_data(chosen)
    assert [part.features["label"].names for part in parts] == [["bad", "good", "rare"]] * 2
    assert sum(map(len, parts)) <= 40


def test_a_label_that_only_the_evaluation_file_has_is_refused(folder: Path) -> None:
    chosen = options(folder, eval_data=str(folder / "dev.tsv"))
    with pytest.raises(DataError, match=r"dev.tsv has the label 'new', which is none of 'bad', 'good', 'rare'"):
        inputs.read_data(chosen)


@pytest.mark.parametrize("data", ["imdb", "notes.txt", "all.json"])
def test_data_on_disk_of_no_known_kind_is_not_looked_for_on_the_hub(folder: Path, no_hub: None, data: str) -> None:
    path = folder / data
    path.write_text("{}") if path.suffix else path.mkdir()
    with pytest.raises(DataError, match=f"--data .*{data}.* is not a .tsv, .csv or .jsonl file"):
        inputs.read_data(options(folder, data=str(path)))


@pytest.mark.parametrize("eval_data", ["x.txt", "x.json", "imdb"])
def test_evaluation_data_is_a_file_of_a_known_kind(folder: Path, no_hub: None, eval_data: str) -> None:
    (folder / "x.txt").write_text("text,label\na,good\n")
    path = str(folder / eval_data) if "." in eval_data else eval_data
    with pytest.raises(DataError, match=r"--eval-data .* must be a .tsv, .csv or .jsonl file.*--eval-split"):
        inputs.read_data(options(folder, eval_data=path))
    with pytest.raises(DataError, match="--eval-data"):
        inputs.read_data(options(folder, data="imdb", eval_data=path))


def test_a_file_has_no_evaluation_split(folder: Path) -> None:
    message = "--eval-split names a split of a hub data set; .*train.tsv is a local file: give --eval-data"
    with pytest.raises(DataError, match=message):
        inputs.read_data(options(folder, eval_split="test"))


def test_a_file_whose_name_is_in_capitals_is_local(folder: Path, no_hub: None) -> None:
    (folder / "train.tsv").rename(folder / "TRAIN.TSV")
    train, held_out = inputs.read_data(options(folder, data=str(folder / "TRAIN.TSV")))
    assert (len(train), len(held_out)) == (36, 4)
    assert source(held_out).endswith("TRAIN.TSV (held out)")


def test_rows_are_encoded_with_their_targets(folder: Path) -> None:
    def tokenizer(texts: list[str], pairs: list[str] | None, **how: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[len(text)] for text in texts]}

    data = labelled("x", ["a", "bcd"], ["2", "1"])
    encode: Any = inputs.encode
    classes, numbers = (inputs.learnable(data, labels) for labels in (["1", "2"], None))
    assert encode(classes, tokenizer, 8) == [{"input_ids": [1], "label": 1}, {"input_ids": [3], "label": 0}]
    assert encode(numbers, tokenizer, 8)[0]["label"] == 2.0


def test_a_part_of_the_training_rows_and_rows_for_the_end(folder: Path) -> None:
    chosen = options(folder, eval_fraction=0.25, test_data=str(folder / "train.tsv"), max_test_rows=3)
    train, held_out, test = inputs.read_data(chosen)
    assert (len(train), len(held_out), len(test)) == (30, 10, 3)
    assert sorted([*train["text"], *held_out["text"]]) == sorted(f"t{i}" for i in range(40))
    assert len(inputs.read_data(options(folder, test_data=str(folder / "train.tsv"), max_test_rows=0))) == 2
    with pytest.raises(DataError, match=r"--test-split names a split of a hub data set; .*train\.tsv is a local file"):
        inputs.read_data(options(folder, test_split="test"))
    with pytest.raises(DataError, match=r"missing\.tsv does not exist"):
        inputs.read_data(options(folder, test_data="missing.tsv"))


def test_with_a_share_held_out_a_tasks_development_set_is_for_the_end(tmp_path: Path) -> None:
    (tmp_path / "SST-2").mkdir()
    for name, count in (("train", 20), ("dev", 5)):
        lines = ["sentence\tlabel", *(f"{name} {i}\t{i % 2}" for i in range(count))]
        (tmp_path / "SST-2" / f"{name}.tsv").write_text("\n".join(lines))
    task = {"model": "m", "task": "sst2", "data_dir": str(tmp_path)}
    train, held_out, test = inputs.read_data(TrainOptions(**task, eval_fraction=0.25))
    assert (len(train), len(held_out), len(test)) == (15, 5, 5)
    assert all(text.startswith("train") for text in [*train["text"], *held_out["text"]])
    assert [len(part) for part in inputs.read_data(TrainOptions(**task))] == [20, 5]


def test_a_test_split_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(name: str, config: str | None, split: str, *columns: str) -> Any:
        asked.append(split)
        return labelled(name, ["a"] * 20, ["0", "1"] * 10)

    monkeypatch.setattr(readers, "read_hub", read)
    train, held_out, test = inputs.read_data(TrainOptions(model="m", data="some/set", test_split="test"))
    assert asked == ["train", "test"]
    assert (len(train), len(held_out), len(test)) == (18, 2, 20)
