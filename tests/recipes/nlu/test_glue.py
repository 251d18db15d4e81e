"""The GLUE tasks are read with the row counts that their publishers give."""

from pathlib import Path
from typing import Any

import pytest

from loralib.errors import DataError
from loralib.recipes import records
from loralib.recipes.nlu.glue import TASKS, read_glue, read_glue_file, read_glue_inputs
from peers import data
from recipes.conftest import same

ROWS = {
    ("cola", "train"): 8551,
    ("cola", "dev"): 1043,
    ("sst2", "train"): 67349,
    ("sst2", "dev"): 872,
    ("mrpc", "train"): 3668,
    ("mrpc", "dev"): 408,
    ("stsb", "train"): 5749,
    ("stsb", "dev"): 1500,
    ("rte", "train"): 2490,
    ("rte", "dev"): 277,
    ("wnli", "train"): 635,
    ("wnli", "dev"): 71,
    ("qnli", "dev"): 5463,
}
TEST_ROWS = {"cola": 1063, "sst2": 1821, "mrpc": 1725, "stsb": 1379, "qnli": 5463, "rte": 3000, "wnli": 146}


@pytest.mark.parametrize(("name", "split"), ROWS)
def test_rows_and_labels(name: str, split: str) -> None:
    rows, task = read_glue(name, split, data("glue")), TASKS[name]
    assert len(rows) == ROWS[name, split]
    assert all(rows["text"])
    assert ("pair" in rows.column_names) == (task.pair is not None)
    if task.labels:
        assert set(rows["label"]) == set(task.labels)
    else:
        assert all(0 <= float(label) <= 5 for label in rows["label"])


@pytest.mark.parametrize("name", TEST_ROWS)
def test_rows_of_the_test_sets(name: str) -> None:
    rows = read_glue_inputs(name, "test", data("glue"))
    assert len(rows) == TEST_ROWS[name]
    assert rows["id"] == [str(i) for i in range(len(rows))]
    assert all(rows["text"])
    assert ("pair" in rows.column_names) == (TASKS[name].pair is not None)


def test_quotes_and_spaces_of_the_published_files_are_text() -> None:
    raw = (data("glue") / "MRPC" / "train.tsv").read_text(encoding="utf-8-sig").rstrip("\n").split("\n")[1:]
    rows = read_glue("mrpc", "train", data("glue"))
    assert rows["text"] == [line.rstrip("\r").split("\t")[3] for line in raw]
    assert any('"' in text for text in rows["text"])


def test_a_label_that_the_task_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nfine\t2\n")
    with pytest.raises(DataError, match="label '2'; expected one of 0, 1"):
        read_glue("sst2", "dev", tmp_path)


def test_a_file_of_its_own_is_read_by_path_and_its_labels_translated(tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("sentence\tlabel\nfine\t1\ndull\t0\n")
    rows = read_glue_file("sst2", tmp_path / "mine.tsv")
    assert (rows["text"], rows["label"]) == (["fine", "dull"], ["positive", "negative"])
    (tmp_path / "cola.tsv").write_text("gj04\t1\t\tThey sailed.\n")
    assert read_glue_file("cola", tmp_path / "cola.tsv")["label"] == ["acceptable"]
    (tmp_path / "rte.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\tmaybe\n")
    with pytest.raises(DataError, match="label 'maybe'; expected one of entailment, not_entailment"):
        read_glue_file("rte", tmp_path / "rte.tsv")
    with pytest.raises(DataError, match="none of GLUE's"):
        read_glue_file("sst3", tmp_path / "mine.tsv")


def test_an_unknown_task_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of GLUE's: cola, sst2"):
        read_glue("sst3", "dev", tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_glue("cola", "dev", tmp_path)


MNLI = "index\tgenre\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"


@pytest.fixture
def mnli(tmp_path: Path) -> Path:
    folder = tmp_path / "MNLI"
    folder.mkdir()
    (folder / "dev_matched.tsv").write_text(MNLI + '0\tf\t( "a" )\t"a" said b\tb\tneutral\tentailment\n')
    (folder / "dev_mismatched.tsv").write_text(MNLI + "0\tg\tx\tc\td\tneutral\tneutral\n1\tg\ty\te\tf\t-\tcontradiction\n")
    unlabelled = "index\tgenre\tsentence1\tsentence2\n"
    (folder / "test_matched.tsv").write_text(unlabelled + "0\tf\tm\tn\n")
    (folder / "test_mismatched.tsv").write_text(unlabelled + "0\tf\to\tp\n1\tf\tq\tr\n")
    (tmp_path / "diagnostic").mkdir()
    (tmp_path / "diagnostic" / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n0\ts\tt\n")
    return tmp_path


def test_mnli_has_two_development_and_two_test_sets(mnli: Path) -> None:
    matched = read_glue("mnli", "dev", mnli)
    assert (matched["text"], matched["pair"], matched["label"]) == (['"a" said b'], ["b"], ["entailment"])
    assert same(read_glue("mnli", "dev_matched", mnli), matched)
    assert read_glue("mnli", "dev_mismatched", mnli)["label"] == ["neutral", "contradiction"]
    assert same(read_glue_inputs("mnli", "test", mnli), read_glue_inputs("mnli", "test_matched", mnli))
    assert read_glue_inputs("mnli", "test_mismatched", mnli)["text"] == ["o", "q"]
    assert read_glue_inputs("mnli", "diagnostic", mnli)["pair"] == ["t"]


@pytest.mark.parametrize(
    ("read", "name", "split"),
    [
        (read_glue, "mnli", "test"),
        (read_glue, "sst2", "dev_matched"),
        (read_glue, "sst2", "test"),
        (read_glue_inputs, "sst2", "diagnostic"),
        (read_glue_inputs, "mnli", "train"),
    ],
)
def test_a_split_that_the_task_does_not_have_is_refused(mnli: Path, read: Any, name: str, split: str) -> None:
    with pytest.raises(DataError, match=f"{name} has no split '{split}' of this kind; it has "):
        read(name, split, mnli)


QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def write_qqp(folder: Path, whole: int, broken: int) -> None:
    (folder / "QQP").mkdir(exist_ok=True)
    rows = [f'{i}\t1\t2\tWhat is "{i}?\tWhy {i}?\t{i % 2}' for i in range(whole)]
    rows[1:1] = ["7\t8\tHalf a line"] * broken
    (folder / "QQP" / "train.tsv").write_text(QQP + "\r\n".join(rows) + "\n", newline="")


def test_the_few_malformed_lines_of_qqp_are_passed_over_and_counted(tmp_path: Path) -> None:
    write_qqp(tmp_path, 4000, 4)
    rows = read_glue("qqp", "train", tmp_path)
    assert len(rows) == 4000
    assert records.source(rows).endswith("train.tsv (4 malformed lines passed over)")
    assert rows["text"][0] == 'What is "0?'
    assert rows["label"][:2] == ["not_duplicate", "duplicate"]
    write_qqp(tmp_path, 4000, 0)
    assert records.source(read_glue("qqp", "train", tmp_path)).endswith("train.tsv")


def test_many_malformed_lines_and_those_of_other_tasks_are_refused(tmp_path: Path) -> None:
    write_qqp(tmp_path, 4000, 5)
    with pytest.raises(DataError, match=r"line 3 has 3 fields, expected 6 as in the first line \(and 4 more such lines\)"):
        read_glue("qqp", "train", tmp_path)
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "dev.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\tentailment\nhalf\n")
    with pytest.raises(DataError, match="line 3 has 1 field, expected 3"):
        read_glue("rte", "dev", tmp_path)


def test_the_hub_knows_splits_and_columns_by_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, config: str, *, split: str, revision: None) -> datasets.Dataset:
        asked.append((name, config, split))
        labels = [0, 2] if "test" not in split else [-1, -1]
        table = datasets.Dataset.from_dict({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": labels, "idx": [0, 1]})
        return table.cast_column("label", datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_glue("mnli", "dev_mismatched")["label"] == ["entailment", "contradiction"]
    rows = read_glue_inputs("mnli", "test")
    assert (rows["id"], rows["text"], rows["pair"]) == (["0", "1"], ["a", "b"], ["c", "d"])
    read_glue_inputs("mnli", "diagnostic")
    assert asked == [
        ("nyu-mll/glue", "mnli", "validation_mismatched"),
        ("nyu-mll/glue", "mnli", "test_matched"),
        ("nyu-mll/glue", "ax", "test"),
    ]


def test_without_the_hub_the_error_says_which_data_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    expected = r"nyu-mll/glue' \(mrpc\), split 'train' cannot be loaded \(no network\); get a network, or give --data-dir, "
    with pytest.raises(DataError, match=expected + r"a folder that holds GLUE's own MRPC/train.tsv\.$"):
        read_glue("mrpc", "train")
    with pytest.raises(DataError, match=r"holds GLUE's own MNLI/test_mismatched.tsv\.$"):
        read_glue_inputs("mnli", "test_mismatched")
