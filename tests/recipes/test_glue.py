"""The GLUE tasks are read with the row counts that their publishers give."""

from pathlib import Path

import pytest

from loralib.errors import DataError
from loralib.recipes.glue import TASKS, read_glue, read_glue_file
from peers import data

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
}


@pytest.mark.parametrize(("name", "split"), ROWS)
def test_rows_and_labels(name: str, split: str) -> None:
    rows, task = read_glue(name, split, data("glue")), TASKS[name]
    assert len(rows) == ROWS[name, split]
    assert all(rows.texts)
    assert (rows.pairs is None) == (task.pair is None)
    if task.labels:
        assert set(rows.labels) == set(task.labels)
    else:
        assert all(0 <= float(label) <= 5 for label in rows.labels)


def test_a_label_that_the_task_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nfine\t2\n")
    with pytest.raises(DataError, match="label '2'; expected one of 0, 1"):
        read_glue("sst2", "dev", tmp_path)


def test_a_file_of_its_own_is_read_by_path_and_its_labels_translated(tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("sentence\tlabel\nfine\t1\ndull\t0\n")
    rows = read_glue_file("sst2", tmp_path / "mine.tsv")
    assert (rows.texts, rows.labels) == (["fine", "dull"], ["positive", "negative"])
    (tmp_path / "cola.tsv").write_text("gj04\t1\t\tThey sailed.\n")
    assert read_glue_file("cola", tmp_path / "cola.tsv").labels == ["acceptable"]
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
