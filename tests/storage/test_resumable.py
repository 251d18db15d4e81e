"""Long work goes on from what is on the disk, and only the same work."""

from pathlib import Path

import pytest

from loralib.errors import RunError
from loralib.storage.resumable import Resumable


def test_texts_come_back_and_a_line_that_was_cut_does_not(tmp_path: Path) -> None:
    file = Resumable(tmp_path / "new" / "file.jsonl", {"inputs": "a"})
    assert file.begin() == file.read() == {}
    file.append({2: "Café", 0: "b"})
    file.append({1: ""})
    assert file.read() == {2: "Café", 0: "b", 1: ""}
    whole = file.path.read_bytes()
    for cut in range(1, len(b'{"i": 1, "prediction": ""}\n') + 1):
        file.path.write_bytes(whole[:-cut])
        assert file.read() == {2: "Café", 0: "b"}
        assert whole.startswith(file.path.read_bytes())


def test_other_work_is_refused_by_what_differs(tmp_path: Path) -> None:
    file = Resumable(tmp_path / "file", {"inputs": "a", "decoding": {"beams": 2}})
    file.begin()
    with pytest.raises(RunError, match="was begun with other decoding and other inputs; say the same, or --overwrite"):
        Resumable(file.path, {"inputs": "b", "decoding": {"beams": 3}}).read()


@pytest.mark.parametrize("content", ["", "[1]\n", "{}\n{\n", '{}\n{"i": 1}\n', "\x00\n"])
def test_damage_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(RunError, match=r"^[^\n]* is damaged; add --overwrite to begin again\.$"):
        Resumable(path, {}).read()
