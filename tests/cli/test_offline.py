"""Without a network nobody waits: the hub is asked once, and a local path that is not there is refused at once."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from loralib.cli import main, offline


class _Answers(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def _closed_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(params=[200, 403, 500])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Handler", (_Answers,), {"status": request.param})
    with HTTPServer(("127.0.0.1", 0), handler) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_any_answer_is_an_answer(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(offline.ENDPOINT, server)
    assert offline.reachable()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{closed}", "http://hub.invalid", "nonsense"])
def test_no_answer_is_none(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(offline.ENDPOINT, endpoint.format(closed=_closed_port()))
    assert not offline.reachable()


def test_a_hub_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "PATIENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(offline.ENDPOINT, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert not offline.reachable()


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (["roberta-base"], True),
        (["org/model", None], True),
        ([None, "rows.jsonl.gz"], False),
        (["./gone", "/gone", "a/b/c", "~/model"], False),
        (["smollm2", "minilm", "folder/model.gguf"], False),
        ([], False),
    ],
)
def test_the_hub_is_asked_only_for_its_own_names(
    names: list[str | None], asked: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(offline.OFFLINE, raising=False)
    monkeypatch.setenv(offline.ENDPOINT, f"http://127.0.0.1:{_closed_port()}")
    with offline.offline_if_unreachable(*names):
        assert (os.environ.get(offline.OFFLINE) == "1") == asked
    assert offline.OFFLINE not in os.environ
    assert ("cannot be reached" in capsys.readouterr().err) == asked


@pytest.mark.parametrize("said", ["0", "1"])
def test_who_set_the_variable_is_obeyed(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(offline.OFFLINE, said)
    monkeypatch.setattr(offline, "reachable", lambda: pytest.fail("the hub was asked"))
    with offline.offline_if_unreachable("roberta-base"):
        assert os.environ[offline.OFFLINE] == said
    assert os.environ[offline.OFFLINE] == said


def test_a_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(offline.OFFLINE, raising=False)
    monkeypatch.setattr(offline, "reachable", lambda: pytest.fail("the hub was asked"))
    with offline.offline_if_unreachable(str(tmp_path)):
        pass


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "./gone", "--data", "rows.csv"], r"there is no folder ./gone; --model takes a folder, or a name"),
        (["--model", "bert-base", "--data", "gone.csv"], r"gone.csv does not exist; give the path"),
        (["--model", "bert-base", "--data", "rows.csv", "--eval-data", "gone.tsv"], r"gone.tsv does not exist"),
        (["--model", "bert-base", "--data", "rows.csv", "--test-data", "gone.tsv"], r"gone.tsv does not exist"),
    ],
)
def test_local_files_that_are_not_there_are_refused_before_libraries_load(
    command: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,label\na,b\n")
    assert main([command, *words, "--output", "out"]) == 2
    written = capsys.readouterr()
    assert message in written.err
    assert "Loading" not in written.out
    assert not Path("out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["count", "--model", "org/no-such-model"],
        ["train", "--model", "org/no-such-model", "--data", "rows.csv"],
        ["train", "--model", ".", "--data", "org/no-such-data"],
    ],
    ids=["count", "train", "data"],
)
def test_the_hubs_libraries_do_not_retry(words: list[str], tmp_path: Path) -> None:
    """In a process of its own, as they read the variable on import."""
    (tmp_path / "rows.csv").write_text("text,label\na,b\nc,d\n" * 5)
    environment = {name: value for name, value in os.environ.items() if name != offline.OFFLINE}
    environment[offline.ENDPOINT] = f"http://127.0.0.1:{_closed_port()}"
    command = [sys.executable, "-m", "loralib", *words]
    how: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, **how)
    assert done.returncode == 2
    assert "The Hugging Face hub cannot be reached" in done.stderr
    assert "Retrying" not in done.stderr
    assert "Traceback" not in done.stderr
