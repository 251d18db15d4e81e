"""A folder is written only where it is free; only what the same writer wrote is replaced, and only when the new is whole."""

import json
import shutil
from pathlib import Path

import pytest

from loralib.errors import RunError
from loralib.storage import folders
from loralib.storage.folders import MARK, REPLACED, Writer, files_by_mark, write_mark

WRITER = Writer("run", r"a\.txt|done|part/[^/]+\.bin", done="done")


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, *names: str, text: str = "") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def finished(folder: Path, text: str = "old") -> Path:
    """A folder that was written to its end."""
    WRITER.begin(folder)
    fill(folder, "a.txt", "part/x.bin", "done", text=text)
    WRITER.finish(folder)
    return folder


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "notes", "part/x.bin", "part/thesis.tex", "part/.x.bin.123.tmp", "other/a.txt")
    WRITER.clear(tmp_path)
    assert tree(tmp_path) == {"notes", "part", "part/thesis.tex", "other", "other/a.txt"}
    WRITER.clear(tmp_path / "none")


@pytest.mark.parametrize(
    ("names", "overwrite", "resume", "message"),
    [
        ([], False, False, None),
        ([MARK, "a.txt"], False, False, "exists and is not empty; add --resume to go on with it, or --overwrite to replace it"),
        ([MARK, "a.txt"], True, False, None),
        ([MARK, "a.txt", ".a.txt.7.tmp"], True, False, None),
        ([MARK, "a.txt"], False, True, None),
        (["a.txt"], True, False, r"has no mark \(.loralib.json\) that a run wrote it"),
        ([MARK, "a.txt", "z", "b"], True, False, r"holds what no run wrote \(b, z\); give another --output"),
        ([MARK, "part/thesis.tex"], True, False, r"holds what no run wrote \(part/thesis.tex\)"),
        (["z"], False, True, None),
        (["z", "b/c"], False, False, r"holds other files \(z, b/c\) and no run; choose another --output"),
        (["z", ".z.7.tmp"], False, False, r"holds other files \(.z.7.tmp, z\) and no run"),
        ([MARK, "a.txt", "z"], False, False, "is not empty; add --resume to go on with it, or choose another --output"),
        (["a.txt"], False, False, "is not empty; add --resume to go on with it, or choose another --output"),
    ],
)
def test_a_folder_is_free_or_may_be_replaced_or_gone_on_with(
    tmp_path: Path, names: list[str], overwrite: bool, resume: bool, message: str | None
) -> None:
    fill(tmp_path, *names)
    if MARK in names:
        write_mark(tmp_path, "run")
    if message is None:
        WRITER.check_free(tmp_path, overwrite, resume)
    else:
        with pytest.raises(RunError, match=message):
            WRITER.check_free(tmp_path, overwrite, resume)


def test_one_that_must_be_alone_refuses_others_in_any_case(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds what no comparison wrote \(z\)"):
        Writer("comparison", "a", "a", alone=True).check_free(fill(tmp_path, "z"), overwrite=False, resume=True)


def test_what_another_writer_marked_is_not_this_ones(tmp_path: Path) -> None:
    write_mark(fill(tmp_path, "seeds.yaml"), "seeds")
    with pytest.raises(RunError, match=r"holds other files \(seeds.yaml\) and no run; choose another --output"):
        WRITER.check_free(tmp_path, overwrite=False, resume=False)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"written_by": "seeds"}', '{"written_by": null, "files": 1}', "\x00", "[" * 9999]
)
def test_a_mark_of_others_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / MARK).write_text(content)
    fill(tmp_path, "a.txt")
    assert files_by_mark(tmp_path, "run") is None
    with pytest.raises(RunError, match="has no mark"):
        WRITER.check_free(tmp_path, overwrite=True, resume=False)


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "x.bin", text="precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "part").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "a.txt").symlink_to(tmp_path / "elsewhere" / "x.bin")
    WRITER.clear(tmp_path / "run")
    assert contents(tmp_path / "elsewhere") == {"x.bin": "precious"}


# --- replacing ------------------------------------------------------------------------------------------------------


def test_what_was_there_comes_back_when_the_new_fails_and_goes_when_it_is_whole(tmp_path: Path) -> None:
    before = contents(finished(tmp_path))
    WRITER.begin(tmp_path)
    fill(tmp_path, "a.txt", "part/y.bin", text="new")
    assert contents(tmp_path / REPLACED) == before
    WRITER.give_up(tmp_path)
    assert contents(tmp_path) == before
    WRITER.begin(tmp_path)
    fill(tmp_path, "a.txt", "done", text="new")
    WRITER.finish(tmp_path)
    assert contents(tmp_path) == {MARK: before[MARK], "a.txt": "new", "done": "new"}


def test_a_second_attempt_keeps_what_the_first_one_replaced(tmp_path: Path) -> None:
    before = contents(finished(tmp_path))
    for _ in range(3):  # each killed before it was whole
        WRITER.begin(tmp_path)
        fill(tmp_path, "a.txt", "part/y.bin", text="new")
        WRITER.check_free(tmp_path, overwrite=True, resume=False)
    WRITER.give_up(tmp_path)
    assert contents(tmp_path) == before


def test_what_is_left_of_a_replacement_that_was_done_is_no_more_than_that(tmp_path: Path) -> None:
    finished(tmp_path)
    shutil.copytree(tmp_path, tmp_path / REPLACED)
    fill(tmp_path, "a.txt", text="newer")
    WRITER.begin(tmp_path)
    assert contents(tmp_path / REPLACED)["a.txt"] == "newer"


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("what", ["begin", "give_up"])
@pytest.mark.parametrize("at", range(7))
def test_a_kill_at_any_move_loses_nothing(what: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(finished(tmp_path))
    if what == "give_up":
        WRITER.begin(tmp_path)
    moves, move = 0, Path.replace

    def killed(self: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves > at:
            raise Killed
        return move(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        try:
            getattr(WRITER, what)(tmp_path)
        except Killed:
            assert at < 6
    kept = {name.rpartition("/")[2] for name in contents(tmp_path)}
    assert {name.rpartition("/")[2] for name in before} <= kept
    WRITER.check_free(tmp_path, overwrite=True, resume=False)
    WRITER.begin(tmp_path)
    WRITER.give_up(tmp_path)
    assert contents(tmp_path) == before


def test_nothing_is_left_of_a_folder_that_was_new(tmp_path: Path) -> None:
    WRITER.begin(tmp_path / "new")
    assert json.loads((tmp_path / "new" / MARK).read_text()) == {"written_by": "run"}
    fill(tmp_path / "new", "a.txt")
    WRITER.give_up(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_files_of_others_that_came_meanwhile_stay(tmp_path: Path) -> None:
    WRITER.begin(tmp_path / "new")
    fill(tmp_path / "new", "a.txt", "thesis.tex")
    WRITER.give_up(tmp_path / "new")
    assert tree(tmp_path / "new") == {"thesis.tex"}


def test_all_files_are_found_in_order(tmp_path: Path) -> None:
    fill(tmp_path, "b", "a/c", "a/b/d")
    assert list(folders.all_files(tmp_path)) == ["b", "a/c", "a/b/d"]
