"""The script that `loralib completion` prints completes commands, options and their values in a shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from loralib.cli import COMMANDS, completion, main


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "loralib.bash"
    path.write_text(completion.script("bash"))
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers after these words, the last of which is being written."""
    line = " ".join(f"'{word}'" for word in ("loralib", *words))
    ask = f"source '{script}'; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _loralib; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, check=True, cwd=script.parent)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_it_is_a_script_for_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    asked = subprocess.run(["bash", "--norc", "-c", f"source '{script}'; complete -p loralib"], capture_output=True, check=True)
    assert b"-F _loralib loralib" in asked.stdout


def test_the_first_word_is_a_command(script: Path) -> None:
    assert completed(script, "") == {*COMMANDS, "--help", "--version"}
    assert completed(script, "co") == {"compare", "count", "convert", "combine", "completion"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_offered(script: Path, command: str) -> None:
    assert completed(script, command, "-") == set(filter(None, completion.options_of(command)))


def test_an_option_offers_what_it_takes_and_a_path_else(script: Path) -> None:
    assert completed(script, "train", "--method", "") == {"lora", "last-layers", "full", "bitfit", "prefix"}
    assert completed(script, "convert", "a", "--format", "s") == {"safetensors"}
    assert completed(script, "score", "e") == {"e2e"}
    assert completed(script, "train", "--bf16", "--learning-r") == {"--learning-rate"}
    assert completed(script, "info", "lora") == {"loralib.bash"}


def test_the_command_prints_it(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == script.read_text()
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == "autoload -U +X bashcompinit && bashcompinit\n" + script.read_text()
    assert main(["completion", "fish"]) == 2
    assert "'fish' is not one of bash, zsh" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_it(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(completion.script("zsh"))
    subprocess.run(["zsh", "-n", str(tmp_path / "script")], check=True)
