"""Labelled text is read as it stands in the file, or refused with one clear sentence."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.errors import DataError
from loralib.recipes import records
from loralib.recipes.nlu import readers
from loralib.recipes.nlu.glue import TASKS
from recipes.conftest import labelled, same

FIELD = st.text(
    st.characters(exclude_characters="\t\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\x00", exclude_categories=["Cs"]), min_size=1
)
LABEL = FIELD.map(str.strip).filter(bool)
ROWS = st.lists(st.tuples(FIELD, LABEL), min_size=1, max_size=5)


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def columns(data: Any) -> list[tuple[str, str]]:
    return list(zip(data["text"], data["label"], strict=True))


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


def test_a_csv_field_may_be_long_and_the_limit_of_csv_is_as_before(tmp_path: Path) -> None:
    long, before = "x" * 200_000, csv.field_size_limit()
    path = write(tmp_path / "a.csv", f"text,label\n{long},1\n")
    assert columns(readers.read_file(path, "text", "label")) == [(long, "1")]
    with pytest.raises(DataError, match="check its quotes"):
        readers.read_file(write(path, 'text,label\n"a'), "text", "label")
    assert csv.field_size_limit() == before


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "\\ud800", "label": 1}\n')
    with pytest.raises(DataError, match="has text that is not Unicode"):
        readers.read_file(path, "text", "label")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "\ufefftext\tlabel\nhi\t1\n")
    assert columns(readers.read_file(path, "text", "label")) == [("hi", "1")]


def test_pairs_come_from_their_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\tb\tlabel\none\ttwo\t1\n")
    assert readers.read_file(path, "a", "label", "b")["pair"] == ["two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", "is empty"),
        ("a.tsv", "text\tlabel\n", "has no rows"),
        ("a.tsv", "txt\tlabel\na\t1\n", r"no column 'text'; it has 'txt', 'label'. Nearest: txt"),
        ("a.tsv", "text\tlabel\na\n", "line 2 has 1 field, expected 2"),
        ("a.tsv", "text\tlabel\na\tb\tc\n", "line 2 has 3 fields, expected 2"),
        ("a.jsonl", '{"text": "a", "label": 1}\nnot json\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "not a JSON object"),
        ("a.jsonl", '{"text": "a"}\n', "line 1 has no column 'label'"),
        ("a.jsonl", '{"text": "a", "label": null}\n', "line 1: 'label' is empty; give every row a label"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', "line 1: 'label' is \\[1\\]; a label is a string, a number or a boolean"),
        ("a.jsonl", '{"text": "a", "label": {"b": 1}}\n', "line 1: 'label' is {'b': 1}; a label is"),
        ("a.jsonl", '\n{"text": 5, "label": 1}\n', "line 2: 'text' is 5, not text"),
        ("a.jsonl", '{"text": null, "label": 1}\n', "line 1: 'text' is None, not text"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", "", "has no rows"),
        ("a.tsv", "\n\n", "no column 'text'; it has none"),
        ("a.tsv", "text\tlabel\na\t1\nb\t \n", "a.tsv, line 3: 'label' is empty; give every row a label"),
        ("a.csv", 'text,label\n"a\nb",1\nc,""\n', "a.csv, line 4: 'label' is empty"),
        ("a.csv", "text,label\na,1\n,\n", "line 3: 'label' is empty"),
        (
            "a.csv",
            'text,label\n"a\nb",1\n"c,2\nd,3\n',
            "line 4: the record that begins here .*unexpected end of data.*check its quotes",
        ),
        ("a.csv", 'text,label\n"a"b,1\n', "line 2: the record that begins here"),
        ("a.tsv", "text\tlabel\ttext\na\t1\tb\n", "has 2 columns named 'text'; rename all but one"),
        ("a.tsv", "\t".join(f"c{i}" for i in range(11)), "it has 'c0', 'c1', .*'c7' and 3 more. Nearest"),
        ("a.tsv", "x" * 1000, "it has 'x{59}…'. Nearest"),
        ("a.txt", "text,label\na,1\n", "a.txt is not a .tsv, .csv or .jsonl file"),
        ("a.json", "[]", "a.json is not a .tsv, .csv or .jsonl file"),
    ],
)
def test_a_file_that_cannot_serve_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        readers.read_file(write(tmp_path / name, content), "text", "label")


@pytest.mark.parametrize(("name", "content"), [("a.tsv", "a\tb\ta\tlabel\ttext\n1\t2\t3\t4\t5\n")])
def test_other_columns_may_have_one_name(tmp_path: Path, name: str, content: str) -> None:
    assert columns(readers.read_file(write(tmp_path / name, content), "text", "label")) == [("5", "4")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "text\tlabel\n\na\t 1 \n \t \nb\t2\n  \n"),
        ("a.csv", "text,label\r\n\r\na, 1\r\n   \r\nb,2 \r\n"),
        ("a.jsonl", '{"text": "a", "label": "1 "}\n \n{"text": "b", "label": " 2"}\n'),
    ],
)
def test_blank_lines_and_space_around_labels_are_passed_over(tmp_path: Path, name: str, content: str) -> None:
    assert columns(readers.read_file(write(tmp_path / name, content), "text", "label")) == [("a", "1"), ("b", "2")]


def test_a_blank_line_in_a_file_of_one_column_is_a_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3: 'text' is empty"):
        readers.read_file(write(tmp_path / "a.tsv", "text\na\n\nb\n"), "text", "text")


@pytest.mark.parametrize(
    ("value", "label"), [("true", "True"), ("3", "3"), ("1.0", "1"), ("2.5", "2.5"), ('"1.0"', "1.0"), ('" x "', "x")]
)
def test_a_json_label_is_a_string_a_number_or_a_boolean(tmp_path: Path, value: str, label: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "a", "label": {value}}}\n')
    assert columns(readers.read_file(path, "text", "label")) == [("a", label)]


def test_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    assert records.is_local_file("A.TSV")
    assert records.is_local_file("A.Csv.GZ")
    path = tmp_path / "A.TSV.GZ"
    path.write_bytes(gzip.compress(b'text\tlabel\n"a\t1\n'))
    assert columns(readers.read_file(path, "text", "label")) == [('"a', "1")]


WHOLE = gzip.compress("".join(["text\tlabel\n", *(f"{i * i}\t{i}\n" for i in range(5000))]).encode(), mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        WHOLE[:-20],
        WHOLE[: len(WHOLE) // 2],
        b"text\tlabel\na\t1\n",
        WHOLE[:10] + b"\xff" * 40 + WHOLE[50:],
        WHOLE[:-8] + bytes(8),
    ],
    ids=["truncated", "half", "plain", "corrupt", "wrong sum"],
)
def test_a_damaged_gzip_file_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.tsv.gz is not a whole gzip file"):
        readers.read_file(path, "text", "label")
    with pytest.raises(DataError, match=r"a.tsv.gz is not a whole gzip file"):
        readers.read_file(path, "text", "label", header=("text", "label"))


def test_a_file_without_column_names_is_read_or_refused_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "x\t1\t\tone\n\nx\t 0\t*\ttwo\n")
    assert columns(readers.read_file(path, "sentence", "label", header=TASKS["cola"].header)) == [
        ("one", "1"),
        ("two", "0"),
    ]
    path.write_bytes(b"a\t\xff\n")
    with pytest.raises(DataError, match="UTF-8"):
        readers.read_file(path, "text", "label", header=("text", "label"))
    names = ("text", "label")
    with pytest.raises(DataError, match="line 2 has 1 field, expected 2"):
        readers.read_file(write(path, "a\t1\nb\n"), *names, header=names)
    with pytest.raises(DataError, match="does not exist"):
        readers.read_file(tmp_path / "none.tsv", *names, header=names)
    with pytest.raises(DataError, match=r"a.csv has no line of column names.*must be a .tsv"):
        readers.read_file(write(tmp_path / "a.csv", "a,1\n"), *names, header=names)


def test_a_file_that_is_not_there_or_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        readers.read_file(tmp_path / "none.tsv", "text", "label")
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        readers.read_file(tmp_path / "folder.tsv", "text", "label")
    (tmp_path / "a.csv").write_bytes(b"text,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        readers.read_file(tmp_path / "a.csv", "text", "label")


DATA = labelled("x", [str(i) for i in range(50)], [str(i % 2) for i in range(50)], [str(-i) for i in range(50)])


@given(n=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_sample_is_seeded_distinct_and_keeps_rows_together(n: int, seed: int) -> None:
    sample = records.sample(DATA, n, seed)
    assert same(sample, records.sample(DATA, n, seed))
    assert len(set(sample["text"])) == len(sample) == min(n, len(DATA))
    assert all(
        int(t) % 2 == int(label) and int(t) == -int(p)
        for t, label, p in zip(sample["text"], sample["label"], sample["pair"], strict=True)
    )


@given(fraction=st.floats(0.05, 0.9), seed=st.integers(0, 5))
def test_a_split_shares_out_every_row_once(fraction: float, seed: int) -> None:
    train, held_out = records.split(DATA, fraction, seed)
    assert sorted([*train["text"], *held_out["text"]]) == sorted(DATA["text"])
    assert len(held_out) == round(fraction * len(DATA))


@pytest.mark.parametrize(
    ("rows", "fraction", "message"),
    [
        (50, 0.0, "--eval-fraction 0 holds nothing out; give --eval-data or a larger fraction"),
        (2, 0.1, r"x \(2 rows\): --eval-fraction 0.1 holds nothing out; give --eval-data or a larger fraction"),
        (2, 0.9, "--eval-fraction 0.9 leaves nothing to train on; give --eval-data or a smaller fraction"),
    ],
)
def test_a_split_with_an_empty_part_is_refused(rows: int, fraction: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        records.split(DATA.select(range(rows)), fraction, 0)


def test_a_held_out_part_says_that_it_is_one() -> None:
    assert [records.source(part) for part in records.split(DATA, 0.1, 0)] == ["x", "x (held out)"]


CARD = """---
dataset_info:
  features:
  - {name: text, dtype: string}
  - {name: label, dtype: {class_label: {names: {'0': bad, '1': good}}}}
---
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` loads as it does a data set on the hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def test_a_hub_data_set_gives_names_of_classes_and_shows_no_bars(hub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    write(hub / "README.md", CARD)
    write(hub / "train.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    data = readers.read_hub(str(hub), None, "train", "text", "label")
    assert columns(data) == [("a", "good"), ("b", "bad")]
    assert records.source(data) == f"hub data set {str(hub)!r}, split 'train'"
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        ('{"text": "a", "label": 1}\n{"text": oh}\n', "train", "cannot be loaded .*give a local file"),
        ('{"text": "a", "label": 1}\n', "dev", "split 'dev' cannot be loaded .*Unknown split"),
        ('{"text": "a", "lable": 1}\n', "train", "split 'train' has no column 'label'.*Nearest: lable"),
        ('{"text": "a", "label": null}\n', "train", "split 'train', row 1: 'label' is empty"),
        ('{"text": "a", "label": 1.0}\n{"text": "b", "label": null}\n', "train", "row 2: 'label' is empty"),
        ('{"text": 5, "label": 1}\n', "train", "row 1: 'text' is 5, not text"),
        ('{"text": "a", "label": [1]}\n', "train", "row 1: 'label' is .*; a label is a string"),
    ],
)
def test_a_hub_data_set_that_cannot_serve_is_refused(hub: Path, content: str, split: str, message: str) -> None:
    import datasets

    write(hub / "train.jsonl", content)
    with pytest.raises(DataError, match=message):
        readers.read_hub(str(hub), None, split, "text", "label")
    assert not datasets.are_progress_bars_disabled()


def test_a_hub_label_that_stands_for_no_class_is_no_crash(hub: Path) -> None:
    write(hub / "README.md", CARD)
    write(hub / "test.jsonl", '{"text": "a", "label": -1}\n')
    assert readers.read_hub(str(hub), None, "test", "text", "label")["label"] == ["-1"]
