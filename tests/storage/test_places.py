"""What is at a path is said as it is, and nothing but a file is opened: reading from a pipe would wait."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loralib as lora
from loralib.errors import FormatError, LoRAError
from loralib.recipes.records import check_file
from loralib.storage.atomic import read_json
from loralib.storage.pickled import read_pickled
from loralib.storage.safetensors import read_header

READERS: list[Callable[[Path], Any]] = [read_json, read_pickled, read_header, check_file, lora.load]
KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: None, "does not exist"),
    "pipe": (os.mkfifo, "is a pipe or a device, not a file"),
    "link": (lambda path: path.symlink_to("gone"), "is a link to what does not exist"),
    "loop": (lambda path: path.symlink_to(path.name), "is a link to what does not exist"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".pt", ".tsv"])
def test_what_is_no_file_is_called_what_it_is(read: Callable[[Path], Any], kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    make, sentence = KINDS[kind]
    make(path)
    with pytest.raises(LoRAError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path} {sentence}; ")


@pytest.mark.parametrize("read", READERS[:-1])
def test_a_folder_is_called_one(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(LoRAError, match="is a folder; "):
        read(tmp_path)


@pytest.mark.parametrize("read", READERS[:3])
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"{}")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("loralib.storage.safetensors.safe_open", "zipfile.is_zipfile", "pathlib.Path.read_text"):
        monkeypatch.setattr(name, refuse)
    with pytest.raises(FormatError, match=r"cannot be read \(Permission denied\)"):
        read(path)
