"""A compressed data file becomes no larger than data are."""

import gzip
from pathlib import Path

import pytest

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
