"""Files that are written whole or not at all, alone or together, whatever fails or is killed; and JSON objects read."""

import itertools
import os
import stat
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from kills import in_fresh_process
from loralib.errors import FormatError
from loralib.storage.atomic import read_json, settle, write_atomically, write_together
from loralib.storage.temporaries import temporary


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("own", ["a", "ab"])
def test_threads_that_write_the_same_leave_whole_files(own: str, tmp_path: Path) -> None:
    contents, written = [bytes([i]) * 100_000 for i in range(8)], []

    def write(content: bytes) -> None:
        write_together({tmp_path / name: content for name in own})
        written.append(content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == contents
    assert {(tmp_path / name).read_bytes() for name in own} <= set(contents)
    assert names(tmp_path) == [*own]


KILLED_WRITES = """
import itertools, shutil, sys
from pathlib import Path
from kills import kills, killed
from loralib.storage.atomic import settle, write_together

root, n, there = Path(sys.argv[1]) / "work", int(sys.argv[2]), sys.argv[3] == "True"
paths = [root / name for name in "abc"[:n]]

def write(text):
    write_together({path: f"{text} {path.name}".encode() for path in paths})

def begin():
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if there:
        write("old")

def seen():
    "What a reader finds: the generation of each file that is there."
    return {path.name: path.read_text().split()[0] for path in paths if path.exists()}

def check(steps, after, last=("new",)):
    for step in steps:
        found = seen()
        assert len(found) < n or len(set(found.values())) == 1, found  # never files of both
        after()
        names = sorted(path.name for path in root.iterdir())
        assert names in [[path.name for path in paths], *([] if there else [[]])], (step, names)
        assert set(seen().values()) in ({"old"} if there else set(), {"new"}, set(last)), (step, seen())
        print(step, *sorted(set(seen().values())))

check(kills(lambda: write("new"), root, begin), lambda: settle(paths))
check(kills(lambda: write("new"), root, begin), lambda: write("newer"), ("newer",))

def begin_with_killed(step):
    begin()
    killed(lambda: write("new"), root, step)

for step in range(30):  # settling is killed, too
    check(kills(lambda: settle(paths), root, lambda: begin_with_killed(step)), lambda: settle(paths))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system copies no processes")
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("there", [True, False])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(n: int, there: bool, tmp_path: Path) -> None:
    shown = in_fresh_process(KILLED_WRITES, tmp_path, str(n), str(there))
    assert f"{2 * n - 1} " in shown
    assert ("old" in shown) == there
    assert "newer" in shown


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("fails", range(4))
def test_what_fails_is_undone_or_finished(there: bool, fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "ab"]
    if there:
        write_together({path: b"old" for path in paths})
    count, replace = itertools.count(), Path.replace

    def moved(self: Path, target: Path) -> Path:
        if next(count) == fails:
            raise OSError(5, "Input/output error")
        return replace(self, target)

    moves = 3
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", moved)
        with pytest.raises(OSError, match=r"Input/output error.*[ab]'") if fails < moves else nullcontext():
            write_together({path: b"new" for path in paths})
    found = [path.read_bytes() for path in paths if path.exists()]
    assert found in ([b"old", b"old"] if there else [], [b"new", b"new"])
    assert names(tmp_path) == ["a", "b"][: len(found)]


def test_files_that_were_written_since_on_another_host_are_not_finished_again(ended: str, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    write_together({path: b"since" for path in paths})
    temporary(paths[1], ended).write_bytes(b"killed, and the first of the two was in its place")
    settle(paths)
    assert [path.read_bytes() for path in paths] == [b"since", b"since"]
    assert names(tmp_path) == ["a", "b"]


def test_a_file_gets_its_new_content_and_nothing_else_is_left(tmp_path: Path) -> None:
    for content in (b"old", b"", b"new" * 1000):
        write_atomically(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == content
        assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="folders are not synced")
def test_content_is_on_the_disk_before_its_name_and_names_are_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[str]]] = []

    def seen(descriptor: int) -> None:
        at = os.fstat(descriptor)
        what = "folder" if stat.S_ISDIR(at.st_mode) else f"{at.st_size} bytes"
        synced.append((what, [name for name in names(tmp_path) if not name.startswith(".")]))

    monkeypatch.setattr(os, "fsync", seen)
    write_together({tmp_path / "a": b"1", tmp_path / "b": b"22"})
    assert synced == [("1 bytes", []), ("2 bytes", []), ("folder", ["a", "b"])]


def test_files_that_belong_together_may_lie_in_several_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    files = {tmp_path / "in" / "a": b"1", tmp_path / "b": b"2"}
    write_together(files)
    assert {path: path.read_bytes() for path in files} == files
    assert names(tmp_path) == ["b", "in"]


@pytest.mark.parametrize("place", ["no/such/a", "folder"])
def test_what_cannot_be_written_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_atomically(tmp_path / "b", b"old")
    with pytest.raises(OSError, match=str(tmp_path / place)):
        write_together({tmp_path / place: b"new", tmp_path / "b": b"new"})
    assert names(tmp_path) == ["b", "folder"]
    assert names(tmp_path / "folder") == []
    assert (tmp_path / "b").read_bytes() == b"old"


LEFT = {  # what lies there when a write of a and b was killed, "b" is the last: what is to be there after settling
    "nothing was in its place": ({"a": "old", "b": "old", "a.tmp": "new", "b.tmp": "new"}, {"a": "old", "b": "old"}),
    "not all was written": ({"a": "old", "b": "old", "a.tmp": "n"}, {"a": "old", "b": "old"}),
    "the last made way": ({"a": "old", "a.tmp": "new", "b.tmp": "new", "b.old": "old"}, {"a": "old", "b": "old"}),
    "the first was in its place": ({"a": "new", "b.tmp": "new", "b.old": "old"}, {"a": "new", "b": "new"}),
    "all were in their places": ({"a": "new", "b": "new", "b.old": "old"}, {"a": "new", "b": "new"}),
    "there was nothing before": ({"a.tmp": "new", "b.tmp": "new"}, {}),
    "there was nothing, the first was in its place": ({"a": "new", "b.tmp": "new"}, {"a": "new", "b": "new"}),
}


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.parametrize("act", ["settle", "write"])
def test_what_a_kill_left_is_finished_or_undone(case: str, act: str, ended: str, tmp_path: Path) -> None:
    there, expected = LEFT[case]
    for name, content in there.items():
        plain, _, kind = name.partition(".")
        (temporary(tmp_path / plain, ended, kind) if kind else tmp_path / plain).write_text(content)
    paths = [tmp_path / "a", tmp_path / "b"]
    if act == "settle":
        settle(paths)
    else:
        write_together({path: b"newer" for path in paths})
        expected = {"a": "newer", "b": "newer"}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == expected


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}x', b"\xff", b"[" * 100_000, b"[1]", b"null", None])
def test_what_is_no_json_object_is_one_error(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FormatError, match=f"{path} (is not (JSON|a JSON object)|does not exist).*fetch or save it again"):
        read_json(path)


def test_a_json_object_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"ä": [1, null, {"b": 2.5}]}', encoding="utf-8")
    assert read_json(tmp_path / "a") == {"ä": [1, None, {"b": 2.5}]}
