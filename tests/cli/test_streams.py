"""No command's work ends because its output cannot be shown: characters, closed descriptors, full disks, closed pipes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import loralib as lora
from loralib.cli.streams import lenient

pytest_plugins = ["recipes.conftest"]

RUN = [sys.executable, "-m", "loralib"]
ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CP1252 = {"PYTHONIOENCODING": "cp1252"}


def shell(line: str, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `loralib` in a shell by a `line` that says "$@" where its words stand."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *RUN, *words], capture_output=True, env=os.environ | environment, check=False
    )


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """An adapter in a folder whose name, and whose layers' names, no old terminal can show."""
    update = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)
    folder = tmp_path / "Δ-адаптер-[bold]"
    lora.save(lora.Adapter(lora.LoRAConfig(), {"schicht.größe_層": update, "schicht.[/red]": update}), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("environment", [ASCII, CP1252, {}])
def test_a_command_shows_what_the_terminal_has_no_characters_for(strange: Path, environment: dict[str, str]) -> None:
    out = str(strange.parent / "zwei-Δ.safetensors")
    done = shell('exec "$@"', "convert", str(strange), "-o", out, "--format", "safetensors", "--r", "1", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path(out).is_file()
    assert b"[bold]" in done.stdout
    told = shell('exec "$@"', "info", str(strange), **environment)
    assert (told.returncode, told.stderr) == (0, b"")
    assert b"[/red]" in told.stdout


@pytest.mark.slow
@pytest.mark.parametrize("line", ['exec "$@" >&-', 'exec "$@" > /dev/full', 'exec "$@" <&- >&- 2>&-'])
def test_what_is_to_be_written_is_written_though_standard_output_cannot_be(strange: Path, line: str) -> None:
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    out = strange.parent / "two.safetensors"
    done = shell(line, "convert", str(strange), "-o", str(out), "--format", "safetensors")
    assert done.returncode == 1
    assert set(lora.load(out).layers) == {"schicht.größe_層", "schicht.[/red]"}
    if "2>&-" not in line:
        assert done.stderr.decode().startswith("loralib: standard output could not be written (")
        assert done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_a_closed_standard_error_changes_nothing(strange: Path) -> None:
    done = shell('exec "$@" 2>&-', "info", str(strange), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["format"] == "peft"
    assert shell('exec "$@" 2>&-', "info", str(strange / "none")).returncode == 2


@pytest.mark.slow
def test_an_output_that_nobody_reads_is_no_error_message(strange: Path) -> None:
    done = shell('"$@" | true; exit ${PIPESTATUS[0]}', "info", str(strange))
    assert done.returncode in (0, 1)  # 0: all was written before the pipe was closed
    assert done.stderr == b""


@pytest.mark.slow
def test_help_on_a_full_disk_has_no_traceback() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    for words in (["--help"], ["info", "--help"], ["--version"]):
        done = shell('exec "$@" > /dev/full', *words)
        assert done.returncode == 1
        assert b"Traceback" not in done.stderr
        assert done.stderr.count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info", "predict"])
def test_a_path_that_libraries_cannot_open_is_refused_at_once(strange: Path, command: str) -> None:
    done = shell('exec "$@"', command, str(strange), "text", **C_LOCALE)
    assert done.returncode == 2
    assert b"PYTHONUTF8=1" in done.stderr or b"is no run folder" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_stream_goes_on_after_its_first_failure() -> None:
    read, write = os.pipe()
    stream, raw = lenient(None, write)
    print("first Δ\udcff", file=stream, flush=True)
    assert os.read(read, 100) == "first Δ\\udcff\n".encode()
    os.close(read)
    for _ in range(3):
        print("x" * 100_000, file=stream, flush=True)
    assert isinstance(raw.failure, BrokenPipeError)
    stream.close()
    os.close(write)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (ASCII, 'exec "$@"'),
        (CP1252, 'exec "$@" >&-'),
        (ASCII, 'exec "$@" > /dev/full 2> /dev/full'),
        (CP1252, 'exec "$@" 2>&-'),
    ],
)
def test_a_run_is_whole_whatever_becomes_of_its_output(
    encoder: Path, reviews: Path, tmp_path: Path, environment: dict[str, str], line: str
) -> None:
    data = tmp_path / "[bold]Δ[" / "x].tsv"
    data.parent.mkdir()
    data.write_text((reviews / "test.tsv").read_text().replace("blame", "[/red]böse").replace("praise", "[red]"))
    folder = tmp_path / "läufe [i]" / "run"
    words = ["train", "--model", str(encoder), "--data", str(data), "--output", str(folder), "--num-train-epochs", "1"]
    done = shell(line, *words, "--target-modules", "all-linear", **environment)
    assert done.returncode == (0 if line in ('exec "$@"', 'exec "$@" 2>&-') else 1), done.stderr
    assert b"Traceback" not in done.stderr
    assert (folder / "metrics.json").is_file()
    assert json.loads((folder / "labels.json").read_text()) == ["[/red]böse", "[red]"]
