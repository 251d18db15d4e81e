"""Labelled text is read as it stands in the file, or refused with one clear sentence."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.errors import DataError
from loralib.recipes import readers
from loralib.recipes.readers import TextData

FIELD = st.text(
    st.characters(exclude_characters="\t\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\x00", exclude_categories=["Cs"]), min_size=1
)
ROWS = st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=5)


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def columns(data: TextData) -> list[tuple[str, str]]:
    return list(zip(data.texts, data.labels, strict=True))


@given(rows=ROWS)
def test_a_tsv_file_is_raw_quotes_are_text(rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = ["text\tlabel", *("\t".join(row) for row in rows)]
    path = write(tmp_path_factory.mktemp("tsv") / "a.tsv", "\n".join(lines) + "\n")
    assert columns(readers.read_file(path, "text", "label")) == rows


@given(rows=ROWS)
def test_a_csv_file_follows_its_standard(rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    assert columns(readers.read_file(path, "text", "label")) == rows


@given(rows=ROWS)
def test_a_gzipped_jsonl_file_gives_its_objects(rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"label": label, "other": 1, "text": text}) + "\n" for text, label in rows)
    assert columns(readers.read_file(path, "text", "label")) == rows


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "\ufefftext\tlabel\nhi\t1\n")
    assert columns(readers.read_file(path, "text", "label")) == [("hi", "1")]


def test_pairs_come_from_their_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\tb\tlabel\none\ttwo\t1\n")
    assert readers.read_file(path, "a", "label", "b").pairs == ["two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", "is empty"),
        ("a.tsv", "text\tlabel\n", "has no rows"),
        ("a.tsv", "txt\tlabel\na\t1\n", r"no column 'text'; it has 'txt', 'label'. Nearest: txt"),
        ("a.tsv", "text\tlabel\na\n", "line 2: 1 fields, expected 2"),
        ("a.tsv", "text\tlabel\na\tb\tc\n", "line 2: 3 fields, expected 2"),
        ("a.jsonl", '{"text": "a", "label": 1}\nnot json\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "not a JSON object"),
        ("a.jsonl", '{"text": "a", "label": null}\n', "no column 'label'"),
        ("a.jsonl", "", "has no rows"),
        ("a.tsv.gz", "no gzip", "cannot be read"),
    ],
)
def test_a_file_that_cannot_serve_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        readers.read_file(write(tmp_path / name, content), "text", "label")


def test_a_file_that_is_not_there_or_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        readers.read_file(tmp_path / "none.tsv", "text", "label")
    (tmp_path / "a.csv").write_bytes(b"text,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        readers.read_file(tmp_path / "a.csv", "text", "label")


DATA = TextData("x", [str(i) for i in range(50)], [str(i % 2) for i in range(50)], [str(-i) for i in range(50)])


@given(n=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_sample_is_seeded_distinct_and_keeps_rows_together(n: int, seed: int) -> None:
    sample = DATA.sample(n, seed)
    assert sample == DATA.sample(n, seed)
    assert len(set(sample.texts)) == len(sample) == min(n, len(DATA))
    assert all(
        int(t) % 2 == int(label) and int(t) == -int(p)
        for t, label, p in zip(sample.texts, sample.labels, sample.pairs or [], strict=True)
    )


@given(fraction=st.floats(0.05, 0.9), seed=st.integers(0, 5))
def test_a_split_shares_out_every_row_once(fraction: float, seed: int) -> None:
    train, held_out = DATA.split(fraction, seed)
    assert sorted(train.texts + held_out.texts) == sorted(DATA.texts)
    assert len(held_out) == round(fraction * len(DATA))


def test_a_split_of_too_few_rows_is_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        DATA.rows([0, 1]).split(0.1, 0)


def test_classes_are_named_in_order_and_numbers_by_value() -> None:
    assert readers.label_names(TextData("x", ["a"] * 3, ["b", "a", "b"])) == ["a", "b"]
    assert readers.label_names(TextData("x", ["a"] * 3, ["10", "9", "-1"])) == ["-1", "9", "10"]


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="all 2 rows have the label 'a'"):
        readers.label_names(TextData("x", ["a"] * 2, ["a", "a"]))


def test_a_label_that_training_did_not_have_is_refused() -> None:
    with pytest.raises(DataError, match="'c', which is none of 'a', 'b'"):
        readers.class_ids(TextData("x", ["a"], ["c"]), ["a", "b"])


@pytest.mark.parametrize("label", ["x", "", "nan", "inf"])
def test_a_label_that_is_no_number_is_refused_for_regression(label: str) -> None:
    with pytest.raises(DataError, match="row 2: the label"):
        readers.scores(TextData("x", ["a", "b"], ["1.5", label]))
