"""A folder that is replaced as a whole is the old one or the new one, and only what its writer left is removed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loralib.errors import RunError
from loralib.storage.folders import MARK, all_files, write_mark
from loralib.storage.swap import new_folder, sole_writer
from loralib.storage.temporaries import temporary


@pytest.fixture(scope="module")
def ended() -> str:
    """The tag of a write of a process that has ended."""
    program = "from loralib.storage.processes import tag; print(tag())"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.strip()


def fill(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text(text)
    write_mark(folder, "merge", ["file"])
    return folder


def write(output: Path, text: str) -> None:
    with sole_writer(output, "merge"), new_folder(output) as work:
        fill(work, text)


def content(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in all_files(folder) if not name.endswith(MARK)}


def test_the_new_folder_is_there_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    write(out, "old")
    assert content(tmp_path) == {"deep/out/file": "old"}
    with sole_writer(out, "merge"), new_folder(out) as work:
        fill(work, "new")
        assert content(out) == {"file": "old"}
    assert content(tmp_path) == {"deep/out/file": "new"}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there(there: bool, error: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    if there:
        write(out, "old")

    def fails() -> None:
        with sole_writer(out, "merge"), new_folder(out) as work:
            fill(work, "new")
            raise error

    with pytest.raises(error):
        fails()
    assert content(tmp_path) == ({"deep/out/file": "old"} if there else {})
    assert (tmp_path / "deep").exists() == there


@pytest.mark.parametrize("at", range(2))
def test_an_interrupt_between_the_moves_puts_the_old_one_back(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, moves, replace = tmp_path / "out", [], Path.replace
    write(out, "old")

    def moved(self: Path, target: Path) -> Path:
        moves.append(self)
        if len(moves) == at + 1:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", moved)
        with pytest.raises(KeyboardInterrupt):
            write(out, "new")
    assert content(tmp_path) == {"out/file": "old"}


def test_the_second_writer_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with sole_writer(out, "merge"), pytest.raises(RunError, match="out is being written by process"):
        write(out, "new")
    assert content(tmp_path) == {"out/file": "old"}


# --- what killed ones left ------------------------------------------------------------------------------------------


def test_an_old_folder_comes_back_where_no_new_one_took_its_place(ended: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(temporary(out, ended, "old"), "old")
    fill(temporary(out, ended), "half")
    with sole_writer(out, "merge"):
        assert content(out) == {"file": "old"}
    assert content(tmp_path) == {"out/file": "old"}


def test_an_old_folder_goes_where_a_new_one_took_its_place(ended: str, tmp_path: Path) -> None:
    out = fill(tmp_path / "out", "new")
    fill(temporary(out, ended, "old"), "old")
    with sole_writer(out, "merge"):
        assert content(tmp_path) == {"out/file": "new", ".out.lock": (tmp_path / ".out.lock").read_text()}
    assert content(tmp_path) == {"out/file": "new"}


def test_an_old_folder_stays_where_something_else_took_its_place(ended: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    old = fill(temporary(tmp_path / "out", ended, "old"), "old")
    with sole_writer(tmp_path / "out", "merge"):
        pass
    assert content(old) == {"file": "old"}
    assert content(tmp_path / "out") == {"thesis.tex": "x"}


def test_what_others_are_called_stays_and_links_are_not_followed(ended: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(tmp_path / "precious", "x")
    for path in (tmp_path / ".out.tmp", tmp_path / ".out2.1.tmp", temporary(tmp_path / "other", ended)):
        fill(path, "x")
    before = content(tmp_path)
    temporary(out, ended).symlink_to(tmp_path / "precious")
    write(out, "new")
    write(out, "newer")
    assert content(tmp_path) == before | {"out/file": "newer"}


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "x")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "out", "new")
    assert not (tmp_path / "out").is_symlink()
    assert content(tmp_path) == {"elsewhere/file": "x", "out/file": "new"}
