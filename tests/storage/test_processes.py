"""Which process wrote something, and whether it has surely ended."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loralib.storage.processes import TAG, Process, is_gone, started, tag, this_process


def test_the_tag_names_this_process_and_one_write() -> None:
    first, second = tag(), tag()
    assert first != second
    assert first.startswith(f"{os.getpid()}-")
    assert this_process().host == socket.gethostname()


def test_a_process_that_ended_and_is_not_yet_waited_for_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        there = Process(socket.gethostname(), process.pid, started(process.pid) or "")
        assert not there.is_gone
        assert not Process(there.host, there.pid, "").is_gone  # where the system does not say when it started
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert there.is_gone


def test_where_the_system_says_little_a_number_is_all_there_is(ended_pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *args, **how: (_ for _ in ()).throw(FileNotFoundError))
    assert started(os.getpid()) == ""
    assert started(ended_pid) is None
    assert started(10**30) is None


def match(text: str) -> re.Match[str]:
    found = re.fullmatch(TAG, text)
    assert found is not None
    return found


def test_a_tag_can_be_read_again_and_tells_whose_it_is(ended: str) -> None:
    own, gone = match(tag()), match(ended)
    assert int(own["pid"]) == os.getpid()
    assert own["host"] == gone["host"]
    assert own["started"] != gone["started"]
    assert [is_gone(own), is_gone(gone)] == [False, True]


def test_every_part_of_a_tag_decides(ended_pid: int) -> None:
    own = match(tag())
    pid, host, began = own["pid"], own["host"], own["started"]
    assert is_gone(match(f"{pid}-{host}-{began}-7")) is False, "another write of this process"
    assert is_gone(match(f"{pid}-{host}-000000-7")), "the number is another process's now"
    assert is_gone(match(f"{pid}-000000-000000-7")) is False, "of another host nothing is known"
    assert is_gone(match(f"{ended_pid}-000000-000000-7")) is False
    assert is_gone(match(f"{ended_pid}-{host}-{began}-7"))
    assert [is_gone(match(pid)), is_gone(match(str(ended_pid)))] == [False, True], "without more the number alone decides"


@pytest.mark.parametrize("text", ["", "x", "1-2", "12345678901", "1-abcdef-abcdef-x", "-1", "1-ABCDEF-abcdef-0"])
def test_what_is_no_tag_does_not_match(text: str) -> None:
    assert re.fullmatch(TAG, text) is None


def test_a_process_is_gone_when_its_number_is_free_or_anothers(ended_pid: int) -> None:
    own = this_process()
    assert (own.host, own.pid, own.started) == (socket.gethostname(), os.getpid(), started(os.getpid()))
    assert not own.is_gone
    assert Process(own.host, ended_pid, own.started).is_gone
    assert Process(own.host, own.pid, own.started + "0").is_gone
    assert not Process(own.host, own.pid, "").is_gone, "when it started is not known"
    assert not Process("elsewhere", ended_pid, "").is_gone


def test_the_start_of_a_process_is_always_the_same_and_not_its_parents() -> None:
    assert started(os.getpid()) == started(os.getpid()) != started(os.getppid())
