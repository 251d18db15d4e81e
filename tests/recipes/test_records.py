"""Rows of data from files of every kind: read alike, refused with their line, sampled and split by a seed."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.errors import DataError
from loralib.recipes import records


def test_a_file_that_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LEAST_UNZIPPED", 1000)
    small, bomb, plain = tmp_path / "small.tsv.gz", tmp_path / "bomb.tsv.gz", tmp_path / "plain.tsv"
    small.write_bytes(gzip.compress(b"a" * 1000))
    bomb.write_bytes(gzip.compress(b"a" * 1_000_000))
    plain.write_bytes(b"a" * 1_000_000)
    assert records.read_text(small) == "a" * 1000
    assert len(records.read_text(plain)) == 1_000_000
    with pytest.raises(
        DataError, match=r"bomb.tsv.gz becomes more than [0-9,]+ characters .*; if you trust it, unzip it first"
    ):
        records.read_text(bomb)
    monkeypatch.setattr(records, "MOST_TIMES", 1032)  # what gzip can do at most
    assert len(records.read_text(bomb)) == 1_000_000


def read(tmp_path: Path, name: str, content: str, *columns: str, **how: Any) -> list[records.Record]:
    (tmp_path / name).write_text(content, newline="")
    return records.read_records(tmp_path / name, columns, **how)


FILES = {
    "a.tsv": 'text\tlabel\n\n"a\t1\nb, c\t2\n',
    "a.csv": 'text,label\n"""a",1\n\n"b, c",2\n',
    "a.jsonl": '{"text": "\\"a", "label": "1"}\n\n{"label": "2", "text": "b, c"}\n',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("begins", ["", "\ufeff"])
def test_files_of_every_kind_give_the_same_rows_with_their_lines(name: str, ends: str, begins: str, tmp_path: Path) -> None:
    found = read(tmp_path, name, begins + FILES[name].replace("\n", ends), "text", "label")
    assert [dict(row) for _, row in found] == [{"text": '"a', "label": "1"}, {"text": "b, c", "label": "2"}]
    lines = (1, 3) if name.endswith("jsonl") else (3, 4) if name.endswith("tsv") else (2, 4)
    assert [where for where, _ in found] == [f"{tmp_path / name}, line {line}" for line in lines]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", "is empty"),
        ("a.tsv", "text\tlabel\na\n", "line 2 has 1 field, expected 2 as in the first line"),
        ("a.tsv", "text\ttext\na\tb\n", "2 columns named 'text'; rename all but one"),
        ("a.csv", "text\na,b\n", "line 2 has 2 fields, expected 1"),
        ("a.csv", 'text\n"a\n', "line 2: the record that begins here is not valid"),
        ("a.csv", "txet\na\n", "has no column 'text'; it has 'txet'. Nearest: txet"),
        ("a.jsonl", '{"text": 1}\n[1]\n', "line 2 is not a JSON object"),
        ("a.jsonl", "\n{\n", "line 2 is not JSON"),
        ("a.jsonl", '{"label": 1}\n', "line 1 has no column 'text'"),
        ("a.txt", "a", "is not a .tsv, .csv or .jsonl file"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, name, content, "text")


def test_names_may_be_given_and_odd_lines_collected(tmp_path: Path) -> None:
    malformed: list[str] = []
    found = read(tmp_path, "a.tsv", "a\tb\nc\nd\te\tf\n", "x", header=("x", "y"), malformed=malformed)
    assert [dict(row) for _, row in found] == [{"x": "a", "y": "b"}]
    assert [problem.rpartition(", line ")[2] for problem in malformed] == [
        "2 has 1 field, expected 2",
        "3 has 3 fields, expected 2",
    ]


def test_of_one_column_blank_lines_of_a_table_are_rows(tmp_path: Path) -> None:
    assert [dict(row) for _, row in read(tmp_path, "a.tsv", "text\na\n\nb\n", "text")] == [
        {"text": "a"},
        {"text": ""},
        {"text": "b"},
    ]


def test_what_cannot_be_read_is_told_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"caf\xe9")
    (tmp_path / "a.tsv.gz").write_bytes(b"plain")
    for path, message in (
        (tmp_path / "a.tsv", "cannot be read as UTF-8 text"),
        (tmp_path / "a.tsv.gz", "is not a whole gzip file"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.tsv", "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            records.read_text(path)


def test_many_and_long_names_are_cut_short() -> None:
    assert records.listed([]) == "none"
    assert records.listed(["a" * 100, "b"], most=1, width=5) == "'aaaa…' and 1 more"
    assert records.listed(["abcd"], width=5) == "'abcd'"


@given(n=st.integers(2, 30), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9), by=st.sampled_from([None, "key"]))
def test_a_split_is_disjoint_and_keeps_equal_values_together(n: int, fraction: float, seed: int, by: str | None) -> None:
    data = records.dataset("x", [{"row": i, "key": i % 7} for i in range(n)], "rows")
    keys = min(n, 7) if by else n
    if not 0 < round(fraction * keys) < keys:
        with pytest.raises(DataError, match=r"x \(.*--eval-fraction .* (holds nothing out|leaves nothing to train on)"):
            records.split(data, fraction, seed, by)
        return
    train, held_out = records.split(data, fraction, seed, by)
    assert sorted([*train["row"], *held_out["row"]]) == list(range(n))
    assert records.source(held_out) == "x (held out)"
    assert records.source(train) == "x"
    if by:
        assert not set(train["key"]) & set(held_out["key"])
        assert held_out["row"][:] == sorted(held_out["row"])
    assert len(set(held_out["key" if by else "row"])) == round(fraction * keys)
    assert [part.to_list() for part in records.split(data, fraction, seed, by)] == [train.to_list(), held_out.to_list()]


def test_a_sample_is_drawn_by_the_seed_and_all_is_left_as_it_is() -> None:
    data = records.dataset("x", [{"row": i} for i in range(20)], "rows")
    assert records.sample(data, None, 0) is records.sample(data, 20, 0) is records.sample(data, 99, 0) is data
    first, again, other = (records.sample(data, 8, seed)["row"][:] for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 8


def test_no_rows_and_no_unicode_are_refused() -> None:
    with pytest.raises(DataError, match="x has no example"):
        records.dataset("x", [], "example")
    with pytest.raises(DataError, match="x has text that is not Unicode"):
        records.dataset("x", [{"text": "\ud800"}], "example")
